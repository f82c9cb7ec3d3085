"""Memory bandwidth of this machine by a read stream: the bound of every decode step.

    python -m benchmarks.bandwidth [--threads 2] [--gib 1]

A compiled kernel sums a buffer far larger than the caches, each thread its own contiguous part,
eight vector accumulators deep. One line per thread count: min, median, max of the repetitions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np

STEP = 128  # int32 values summed at a time: eight AVX-512 registers


class ReadStream:
    """A buffer of `gib` GiB read by `threads` parallel tasks; TVM's pool must have that many."""

    def __init__(self, threads: int, gib: float) -> None:
        import tvm
        from tvm.script import tirx as T

        from mlc_bridge.compiler.target import host_target

        steps = int(gib * 2**30) // (4 * STEP * threads)
        self.size = threads * steps * STEP

        @T.prim_func(s_tir=True)
        def stream(
            data: T.Buffer((threads * steps * STEP,), "int32"),  # type: ignore[valid-type]
            out: T.Buffer((threads, STEP), "int32"),  # type: ignore[valid-type]
        ) -> None:
            for part in T.parallel(threads):
                acc = T.alloc_buffer((STEP,), "int32", scope="local")
                for i in T.vectorized(STEP):
                    acc[i] = 0
                for s in range(steps):
                    for i in T.vectorized(STEP):
                        acc[i] = acc[i] + data[(part * steps + s) * STEP + i]
                for i in T.vectorized(STEP):
                    out[part, i] = acc[i]

        self.main = tvm.compile(stream, target=host_target())["stream"]
        self.data = tvm.runtime.tensor(np.ones(self.size, np.int32))
        self.out = tvm.runtime.tensor(np.zeros((threads, STEP), np.int32))

    def seconds_per_gigabyte(self) -> float:
        """Read everything once; seconds for 10^9 bytes."""
        start = time.perf_counter()
        self.main(self.data, self.out)
        seconds = time.perf_counter() - start
        if int(self.out.numpy().sum()) != self.size:
            raise RuntimeError("the read stream did not read everything")
        return seconds / (4 * self.size / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=12)
    options = parser.parse_args()
    # TVM reads the size of its pool once, before the first parallel loop
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    for threads in sorted({1, options.threads}):
        stream = ReadStream(threads, options.gib)
        stream.seconds_per_gigabyte()
        rates = [1 / stream.seconds_per_gigabyte() for _ in range(options.repeat)]
        middle = statistics.median(rates)
        text = f"{min(rates):.1f} / {middle:.1f} / {max(rates):.1f} GB/s (min / median / max)"
        print(f"read stream, {threads} threads: {text}")


if __name__ == "__main__":
    main()

"""Memory bandwidth of this machine by a read stream: the bound of every decode step.

    python benchmarks/bandwidth.py [--threads 2] [--gib 1]

A compiled kernel sums a buffer far larger than the caches, each thread its own contiguous part,
eight vector accumulators deep. One line per thread count: min, median, max of the repetitions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Bandwidth:
    """GB/s (10^9 bytes) over the repetitions."""

    threads: int
    low: float
    median: float
    high: float

    def __str__(self) -> str:
        rates = f"{self.low:.1f} / {self.median:.1f} / {self.high:.1f} GB/s"
        return f"read stream, {self.threads} threads: {rates} (min / median / max)"


def read_bandwidth(threads: int, gib: float = 1.0, repeat: int = 12) -> Bandwidth:
    """Sum `gib` GiB of int32 with `threads` parallel tasks; the pool must have that many."""
    import numpy as np
    import tvm
    from tvm.script import tirx as T

    from mlc_bridge.compiler.target import host_target

    lanes, deep = 16, 8
    steps = int(gib * 2**30) // (4 * lanes * deep * threads)
    step = lanes * deep

    @T.prim_func(s_tir=True)
    def stream(
        data: T.Buffer((threads * steps * step,), "int32"), out: T.Buffer((threads, step), "int32")
    ) -> None:
        for part in T.parallel(threads):
            acc = T.alloc_buffer((step,), "int32", scope="local")
            for i in T.vectorized(step):
                acc[i] = 0
            for s in range(steps):
                for i in T.vectorized(step):
                    acc[i] = acc[i] + data[(part * steps + s) * step + i]
            for i in T.vectorized(step):
                out[part, i] = acc[i]

    library = tvm.compile(stream, target=host_target())
    size = threads * steps * step
    data = tvm.runtime.tensor(np.ones(size, np.int32))
    out = tvm.runtime.tensor(np.zeros((threads, step), np.int32))
    rates = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        library["stream"](data, out)
        rates.append(4 * size / (time.perf_counter() - start) / 1e9)
    if out.numpy().sum() != size:
        raise RuntimeError("the read stream did not read everything")
    kept = rates[2:]
    return Bandwidth(threads, min(kept), statistics.median(kept), max(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gib", type=float, default=1.0)
    options = parser.parse_args()
    # TVM reads the size of its pool once, before the first parallel loop
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    for threads in sorted({1, options.threads}):
        print(read_bandwidth(threads, options.gib))


if __name__ == "__main__":
    main()

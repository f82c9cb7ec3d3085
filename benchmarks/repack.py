"""How fast packed words become other packed words, against copying them on the same core.

Claim: every road from a source's layout to MLC's AutoAWQ layout, and from words to codes, takes in
1 GB/s of packed words or more per core. Each line is the best of five runs over one 11008 x 4096
layer (22.5 MB of 4-bit words, more than the caches hold), beside memcpy of the same bytes.

    python benchmarks/repack.py            one thread; pin it with taskset for steady numbers
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from mlc_bridge.packing import (
    AWQ,
    GPTQ4,
    GPTQ4_ZEROS,
    NK4,
    PLAIN,
    PackedArray,
    Packing,
    from_gemv_fast,
    from_marlin,
    from_signed,
    pack,
    repack,
)

N, K = 11008, 4096


def roads() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Name, bytes of packed words taken in, and the call."""
    rng = np.random.default_rng(0)

    def words(packing: Packing) -> PackedArray:
        shape = packing.words_shape(N, K)
        raw = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
        return PackedArray(raw, packing, (N, K))

    sources = {
        "GPTQ qweight": words(GPTQ4),
        "GEMV / compressed-tensors": words(NK4),
        "AutoAWQ GEMM": words(AWQ),
        "GPTQ qzeros order": words(GPTQ4_ZEROS),
    }
    out = np.empty_like(sources["AutoAWQ GEMM"].words)
    yield "memcpy", out.nbytes, lambda: np.copyto(out, sources["AutoAWQ GEMM"].words)
    for name, array in sources.items():
        if array.packing != AWQ:
            yield f"{name} -> AWQ", array.words.nbytes, lambda a=array: repack(a, AWQ)
    yield "AutoAWQ GEMM -> [n, k/8]", out.nbytes, lambda: repack(sources["AutoAWQ GEMM"], NK4)
    for name, array in sources.items():
        yield f"{name} -> codes", array.words.nbytes, array.unpack
    fast = rng.integers(0, 1 << 16, (N // 4, K), dtype=np.uint16)
    yield "GEMV_FAST -> AWQ", fast.nbytes, lambda: from_gemv_fast(fast)
    tiles = rng.integers(0, 1 << 32, (K // 16, 2 * N), dtype=np.uint32)
    yield "Marlin -> AWQ", tiles.nbytes, lambda: from_marlin(tiles)
    eight = Packing(8, "k", transposed=True)
    gptq8 = PackedArray(rng.integers(0, 1 << 32, (K // 4, N), dtype=np.uint32), eight, (N, K))
    yield "GPTQ 8 bit -> codes", gptq8.words.nbytes, gptq8.unpack
    signed = rng.integers(-128, 128, (N, K), dtype=np.int8)
    yield "int8 -> codes", signed.nbytes, lambda: from_signed(signed, PLAIN, (N, K))
    codes = sources["GEMV / compressed-tensors"].unpack()
    yield "codes -> [n, k/8]", codes.nbytes // 2, lambda: pack(codes, NK4)
    yield "codes -> AWQ", codes.nbytes // 2, lambda: pack(codes, AWQ)


def best(call: Callable[[], object], runs: int = 5) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    copy = 0.0
    print(f"{'road':38} {'GB/s':>6} {'of memcpy':>10}")
    for name, nbytes, call in roads():
        speed = nbytes / best(call) / 1e9
        copy = copy or speed
        print(f"{name:38} {speed:6.2f} {speed / copy:9.0%}")


if __name__ == "__main__":
    main()

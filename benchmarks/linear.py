"""Claim: linear layers decode at the memory's speed and prefill at the arithmetic's.

    python -m benchmarks.linear [--shapes 1b,7b] [--schemes q4f16_autoawq,q4f16_1,q0f16]
                                [--rows 1,8,512] [--threads 2] [--rounds 4]

For each layer shape: our scheduled kernel, a read stream (the bound of decode) and PyTorch's
matmul of the same shape in float32 and bfloat16, in turns within one process. Weights rotate
through copies larger than any cache. Columns: milliseconds min / median / max; GB/s of weights
and its share of the read stream's median; GFLOP/s and its ratio to PyTorch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tvm

SHAPES = {
    # name: (n, k) of fused qkv, attention output, fused gate and up, down
    "tiny": [(512, 256), (256, 256), (1536, 256), (256, 768)],
    "1b": [(2560, 2048), (2048, 2048), (11264, 2048), (2048, 5632)],
    "7b": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
}
CACHES = 256 << 20  # bytes of copies, so that no weight is still in a cache when its turn comes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default="1b,7b")
    parser.add_argument("--schemes", default="q4f16_autoawq,q4f16_1,q0f16")
    parser.add_argument("--rows", default="1,8,512")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    # TVM reads the size of its pool once, before the first parallel loop
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    print(f"{options.threads} threads, {options.rounds} rounds")
    rows = [int(m) for m in options.rows.split(",")]
    for shape in options.shapes.split(","):
        for n, k in SHAPES[shape]:
            for scheme in options.schemes.split(","):
                _report(scheme, n, k, rows, options.threads, options.rounds)


def _report(scheme: str, n: int, k: int, rows: list[int], threads: int, rounds: int) -> None:
    layer, stored = _compile(scheme, n, k), _parameters(scheme, n, k)
    size = sum(a.nbytes for a in stored)
    weights = _turns(stored, max(2, CACHES // size))
    for m in rows:
        sides: dict[str, Callable[[], float]] = {"ours": _ours(layer, weights, m, n, k)}
        sides |= _stream(threads) if m <= 16 else _torch(m, n, k, threads)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, run in sides.items():
                run()
                repeats = 3 if m > 64 else 10
                seconds[side] += [run() for _ in range(repeats)]
        print(_line(scheme, n, k, m, size, seconds), flush=True)


def _line(scheme: str, n: int, k: int, m: int, size: int, seconds: dict[str, list[float]]) -> str:
    ours = seconds.pop("ours")
    middle = statistics.median(ours)
    low, high = min(ours) * 1e3, max(ours) * 1e3
    text = f"{scheme:14} {n:6}x{k:<6} m={m:<4}{low:8.3f} /{middle * 1e3:8.3f} /{high:8.3f} ms "
    if "stream" in seconds:
        rate, bound = size / middle / 1e9, 1 / statistics.median(seconds["stream"])
        return text + f"{rate:6.1f} GB/s = {rate / bound:4.0%} of the read stream {bound:.1f}"
    flops = 2 * m * n * k / middle / 1e9
    ratios = ", ".join(
        f"{statistics.median(s) / middle:.2f}x PyTorch {side}" for side, s in seconds.items()
    )
    return text + f"{flops:6.0f} GFLOP/s = {ratios}"


def _compile(name: str, n: int, k: int) -> tvm.runtime.Executable:
    """The scheme's own dequantize and a float32 sum, as the graph compiler fuses them."""
    import tvm
    from tvm import te
    from tvm.s_tir import dlight

    from mlc_bridge.compiler.target import host_target
    from mlc_bridge.schemes import SCHEMES
    from tir_schedules import RULES

    scheme: Any = SCHEMES[name]
    m, dtype = te.var("m", "int64"), scheme.model_dtype
    x = te.placeholder((m, k), dtype, "x")
    stored = [te.placeholder(s.shape, s.dtype, p) for p, s in scheme.params(n, k).items()]
    weight = stored[0] if len(stored) == 1 else scheme.dequantize(k)(*stored)
    axis = te.reduce_axis((0, k), "k")

    def product(r: Any, j: Any) -> Any:
        return te.sum(x[r, axis].astype("float32") * weight[j, axis].astype("float32"), axis=axis)

    total = te.compute((m, n), product, name="NT_matmul")
    out = te.compute((m, n), lambda *i: total[i].astype(dtype), name="cast")
    func = te.create_prim_func([x, *stored, out]).with_attr("global_symbol", "main")
    target = host_target()
    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(tvm.IRModule({"main": func}))
    return tvm.compile(module, target=target)


def _parameters(name: str, n: int, k: int) -> list[np.ndarray[Any, Any]]:
    from mlc_bridge.schemes import SCHEMES

    rng = np.random.default_rng(0)
    arrays = []
    for spec in SCHEMES[name].params(n, k).values():
        if spec.dtype == "uint32":
            arrays.append(rng.integers(0, 2**32, spec.shape, dtype=np.uint32))
        else:
            small = rng.standard_normal(spec.shape, dtype=np.float32) * 0.01
            arrays.append(small.astype(spec.dtype))
    return arrays


def _turns(stored: list[np.ndarray[Any, Any]], copies: int) -> Iterator[list[Any]]:
    """The parameters of one copy after another, for ever."""
    import itertools

    import tvm

    return itertools.cycle([[tvm.runtime.tensor(a) for a in stored] for _ in range(copies)])


def _ours(
    layer: tvm.runtime.Executable, weights: Iterator[list[Any]], m: int, n: int, k: int
) -> Callable[[], float]:
    import tvm

    some = next(weights)
    dtype = str(some[-1].dtype)
    x = tvm.runtime.tensor(np.random.default_rng(1).standard_normal((m, k)).astype(dtype))
    out = tvm.runtime.tensor(np.zeros((m, n), dtype))
    main = layer["main"]

    def run() -> float:
        weight = next(weights)
        return _timed(lambda: main(x, *weight, out))

    return run


def _stream(threads: int) -> dict[str, Callable[[], float]]:
    """Seconds to read one GB."""
    from benchmarks.bandwidth import ReadStream

    return {"stream": ReadStream(threads, 0.25).seconds_per_gigabyte}


def _torch(m: int, n: int, k: int, threads: int) -> dict[str, Callable[[], float]]:
    import torch

    torch.set_num_threads(threads)
    sides = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        sides[name] = lambda x=x, w=w: _timed(lambda: x @ w.T)
    return sides


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

"""Claim: on a GPU, linear layers decode at the memory's speed and prefill on tensor cores.

    python -m benchmarks.cuda_linear [--shapes 1b,7b] [--rows 1,8,16,64,512,2048] [--rounds 5]
                                     [--schemes q4f16_autoawq,q0f16,e4m3_e4m3_f16]

For each layer shape, in turns within one process: our kernels as models get them, and PyTorch's
matmul of the same shape (cuBLAS float16, and float8 where this PyTorch and this GPU have it). The
bound of few rows is a copy within the memory, bytes read and written. Weights rotate through copies
larger than any cache. A time is that of many calls queued at once, divided by their number, so it
is never below what a launch costs; `launch` prints that cost, of a layer of one tile.

Columns: microseconds min / median / max; GB/s of weights and their share of the copy; TFLOP/s;
ratios of medians to PyTorch (above 1 we are faster); largest error / largest value against float64
over 256 channels. Where no GPU is present it says so and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.linear import SHAPES

CACHES = 512 << 20  # bytes of copies of one weight
QUEUED = 50  # calls between two looks at the clock
CHECKED = 256  # channels compared with float64
Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default="1b,7b")
    parser.add_argument("--schemes", default="q4f16_autoawq,q0f16,e4m3_e4m3_f16")
    parser.add_argument("--rows", default="1,8,16,64,512,2048")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import tvm

    if not tvm.cuda(0).exist:
        sys.exit("no CUDA device here: this benchmark measures on a GPU and has no other mode")
    from mlc_bridge.compiler.target import choose_target

    target = choose_target("cuda")
    print(f"{tvm.cuda(0).device_name}, {target.attrs['arch']}, PyTorch {_torch_version()}")
    tiny = _Layer("q0f16", 128, 128, target)
    print(f"launch: {statistics.median(_seconds(tiny.call(2), options.rounds)) * 1e6:.1f} us")
    copied = _copy_bandwidth(options.rounds)
    print(f"copy:   {copied:.0f} GB/s" if copied else "copy:   needs PyTorch")
    for shape in options.shapes.split(","):
        for n, k in SHAPES[shape]:
            for scheme in options.schemes.split(","):
                layer = _Layer(scheme, n, k, target)
                for m in map(int, options.rows.split(",")):
                    _report(layer, m, options.rounds, copied)


def _report(layer: _Layer, m: int, rounds: int, copied: float) -> None:
    sides = {"ours": layer.call(m), **_torch_sides(m, layer.n, layer.k)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            seconds[side] += _seconds(run, 1)
    ours = seconds.pop("ours")
    middle = statistics.median(ours)
    rate = layer.size / middle / 1e9
    share = f" = {rate / copied:4.0%} of the copy" if copied else ""
    against = "".join(
        f", {statistics.median(s) / middle:.2f}x PyTorch {side}" for side, s in seconds.items()
    )
    print(
        f"{layer.name:14} {layer.n:6}x{layer.k:<6} m={m:<5}"
        f"{min(ours) * 1e6:8.1f} /{middle * 1e6:8.1f} /{max(ours) * 1e6:8.1f} us"
        f" {rate:7.0f} GB/s{share} {2e-12 * m * layer.n * layer.k / middle:7.1f} TFLOP/s{against}"
        f", error {layer.error(m):.1e}",
        flush=True,
    )


class _Layer:
    """One scheme's layer: a function for one row, as for decode, and one for any number."""

    def __init__(self, name: str, n: int, k: int, target: Any) -> None:
        import tvm

        from mlc_bridge.schemes import SCHEMES

        self.name, self.n, self.k = name, n, k
        scheme: Any = SCHEMES[name]
        weight = np.random.default_rng(0).standard_normal((n, k), dtype=np.float32) * 0.02
        stored, decoded = _stored(scheme, weight.astype(np.float16))
        self.matrix = decoded[:CHECKED].astype(np.float64)
        self.x_dtype = "float8_e4m3fn" if name.startswith("e4m3") else scheme.model_dtype
        self.size = sum(a.nbytes for a in stored.values())
        self.one, self.any = (
            _compile(scheme, stored, n, k, self.x_dtype, r, target) for r in (1, 0)
        )
        copies = max(2, CACHES // self.size)
        device = tvm.cuda(0)
        self.weights = itertools.cycle(
            [[tvm.runtime.tensor(a, device) for a in stored.values()] for _ in range(copies)]
        )
        self.outputs: dict[int, tuple[np.ndarray[Any, Any], Any]] = {}

    def call(self, m: int) -> Run:
        import ml_dtypes
        import tvm

        device = tvm.cuda(0)
        dtype = np.dtype(getattr(ml_dtypes, self.x_dtype, self.x_dtype))
        x = np.random.default_rng(m).standard_normal((m, self.k), dtype=np.float32).astype(dtype)
        out = tvm.runtime.tensor(np.zeros((m, self.n), np.float16), device)
        self.outputs[m] = x, out
        on_device = tvm.runtime.tensor(x, device)
        main = (self.one if m == 1 else self.any)["main"]
        return lambda: main(on_device, *next(self.weights), out)

    def error(self, m: int) -> float:
        x, out = self.outputs.pop(m)
        wanted = x.astype(np.float64) @ self.matrix.T
        got = out.numpy()[:, :CHECKED].astype(np.float64)
        return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def _stored(scheme: Any, weight: np.ndarray[Any, Any]) -> tuple[dict[str, Any], Any]:
    """The parameters that the sum reads, and the matrix they stand for.

    One scale for a whole weight is applied after the sum and left out of both.
    """
    names = list(scheme.params(*weight.shape))
    if len(names) == 1:
        return {names[0]: weight}, weight
    params = scheme.encode(scheme.quantize(weight))
    decoded = scheme.decode(params).dequantize()
    if "q_scale" in params and params["q_scale"].size == 1:
        return {"q_weight": params["q_weight"]}, params["q_weight"].astype(np.float32)
    return params, decoded


def _compile(
    scheme: Any, stored: dict[str, Any], n: int, k: int, x_dtype: str, rows: int, target: Any
) -> Any:
    import tvm
    from tvm import te
    from tvm.s_tir import dlight

    from tir_schedules import RULES

    m = rows or te.var("m", "int64")
    x = te.placeholder((m, k), x_dtype, "x")
    places = [te.placeholder(a.shape, str(a.dtype), p) for p, a in stored.items()]
    weight = places[0] if len(places) == 1 else scheme.dequantize(k)(*places)
    axis = te.reduce_axis((0, k), "k")

    def product(r: Any, j: Any) -> Any:
        return te.sum(x[r, axis].astype("float32") * weight[j, axis].astype("float32"), axis=axis)

    total = te.compute((m, n), product, name="NT_matmul")
    out = te.compute((m, n), lambda *i: total[i].astype("float16"), name="cast")
    func = te.create_prim_func([x, *places, out]).with_attr("global_symbol", "main")
    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(tvm.IRModule({"main": func}))
    return tvm.compile(module, target=target)


def _seconds(run: Run, rounds: int) -> list[float]:
    """Seconds of one call, `rounds` times; the first round is preceded by a warm-up."""
    import tvm

    device, times = tvm.cuda(0), []
    for _ in range(5):
        run()
    _wait(device)
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(QUEUED):
            run()
        _wait(device)
        times.append((time.perf_counter() - start) / QUEUED)
    return times


def _wait(device: Any) -> None:
    """For TVM's stream and, where it is used, PyTorch's."""
    device.sync()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def _torch_version() -> str:
    try:
        import torch
    except ImportError:
        return "not installed"
    return f"{torch.__version__}" if torch.cuda.is_available() else "without CUDA"


def _copy_bandwidth(rounds: int) -> float:
    """GB/s of copying 1 GiB, read and written; 0 without PyTorch."""
    if "." not in _torch_version():
        return 0.0
    import torch

    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / statistics.median(_seconds(lambda: b.copy_(a), rounds)) / 1e9


def _torch_sides(m: int, n: int, k: int) -> dict[str, Run]:
    """Calls of PyTorch's matmuls over rotating weights."""
    if "." not in _torch_version():
        return {}
    import torch

    def rotating(make: Callable[[], Any], size: int) -> Any:
        return itertools.cycle([make() for _ in range(max(2, CACHES // size))])

    x = torch.randn(m, k, device="cuda").half()
    halves = rotating(lambda: torch.randn(n, k, device="cuda").half(), 2 * n * k)
    sides: dict[str, Run] = {"float16": lambda: x @ next(halves).T}
    one = torch.ones((), device="cuda")
    x8 = x.to(torch.float8_e4m3fn)
    codes = rotating(lambda: torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn), n * k)

    def float8() -> Any:
        return torch._scaled_mm(x8, next(codes).T, one, one, out_dtype=torch.float16)

    try:
        float8()
    except (RuntimeError, AttributeError, ValueError):  # this GPU or number of rows has none
        return sides
    return {**sides, "float8": float8}


if __name__ == "__main__":
    main()

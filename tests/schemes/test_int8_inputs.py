"""W8A8, activations rounded while running: whole sums to the last bit, on every unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.s_tir import dlight

from mlc_bridge.compiler.target import host_target
from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import PLAIN, PackedArray
from mlc_bridge.qtensor import QTensor, concat
from mlc_bridge.schemes import SCHEMES, Scheme
from mlc_bridge.sources import Checkpoint, detect
from tir_schedules import RULES

GOLDEN = Path(__file__).parents[1] / "golden" / "sources"
DYNAMIC, STATIC = SCHEMES["i8_i8_f16_dynamic"], SCHEMES["i8_i8_f16_static"]
N, K = 50, 200  # neither fills whole tiles or vectors
Array = np.ndarray[Any, Any]
UNITS = {
    "host": None,
    "avx2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    "sse2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
}


class Layer(nn.Module):
    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        for suffix, spec in scheme.params(N, K).items():
            setattr(self, suffix, nn.Parameter(spec.shape, spec.dtype))

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        stored = {suffix: getattr(self, suffix) for suffix in self.scheme.params(N, K)}
        return self.scheme.linear(x, stored, "float32")


def built(
    scheme: Scheme, target: tvm.target.Target, traced: tvm.target.Target | None = None
) -> tuple[relax.VirtualMachine, list[str], str]:
    spec = {"forward": {"x": nn.spec.Tensor([1, "m", K], "float16")}}
    with traced or target:
        module, params = Layer(scheme).export_tvm(spec)
    with target:
        module = relax.transform.LegalizeOps()(module)
        module = dlight.ApplyDefaultSchedule(*RULES(target))(module)
    kernel = module.script()
    lib = relax.build(module, target)
    return relax.VirtualMachine(lib, tvm.cpu()), [name for name, _ in params], kernel


def reference(x: Array, stored: dict[str, Array]) -> Array:
    """The equation, in integers and then float32."""
    x = x.astype(np.float32)
    codes = stored["q_weight"].astype(np.int64) - stored["q_zero"].astype(np.int64)
    if "q_input" in stored:
        step, zero = stored["q_input"]
        whole = np.clip(np.rint(x / step) + zero, -128, 127).astype(np.int64)
        total = (whole - int(zero)) @ codes.T
    else:
        largest = np.abs(x).max(axis=1, keepdims=True)
        step = np.where(largest > 0, largest / np.float32(127), np.float32(1))
        total = np.rint(x / step).astype(np.int64) @ codes.T
    assert np.abs(total).max() < 2**31
    exact: Array = total.astype(np.float32) * (step * stored["q_scale"].astype(np.float32).T)
    return exact


def tensor(static: bool) -> QTensor:
    rng = np.random.default_rng(0)
    codes = PackedArray(rng.integers(0, 256, (N, K), np.uint8), PLAIN, (N, K))
    zero = PackedArray(rng.integers(0, 257, (N, 1), np.uint16), PLAIN, (N, 1))
    scale = rng.random((N, 1)).astype(np.float16)
    inputs = {"input_scale": np.array(0.02, np.float32), "input_zero": np.array(-7, np.float32)}
    return QTensor(codes, scale, zero, (1, K), **(inputs if static else {}))


@pytest.mark.parametrize(("unit", "scheme"), [*((u, DYNAMIC) for u in UNITS), ("host", STATIC)])
def test_bit_for_bit(unit: str, scheme: Scheme) -> None:
    target = tvm.target.Target(UNITS[unit]) if UNITS[unit] else host_target()
    vm, names, kernel = built(scheme, target)
    assert "vpdpbusd" in kernel or unit != "host" or "avx512_vnni" not in cpu_flags()
    stored = scheme.encode(tensor(scheme is STATIC))
    rng = np.random.default_rng(1)
    for rows in (1, 7):
        x = rng.normal(size=(1, rows, K)).astype(np.float16)
        x[0, -1] *= rows == 1  # a row of zeros among others
        x[0, 0, :9] *= 8  # beyond a static scale's range
        arrays = [tvm.runtime.tensor(a) for a in (x, *(stored[name] for name in names))]
        assert np.array_equal(vm["forward"](*arrays).numpy()[0], reference(x[0], stored))


@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC], ids=lambda s: s.name)
def test_cudas_expression(scheme: Scheme) -> None:
    """Whole numbers in float16, summed in float32: what CUDA gets, run here; sums below 2^24."""
    cuda = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host={"kind": "llvm"})
    vm, names, kernel = built(scheme, host_target(), cuda)
    assert "int8" not in kernel.replace("uint8", "").replace(scheme.name, "")
    stored = scheme.encode(tensor(scheme is STATIC))
    x = np.random.default_rng(2).normal(size=(1, 3, K)).astype(np.float16)
    arrays = [tvm.runtime.tensor(a) for a in (x, *(stored[name] for name in names))]
    np.testing.assert_allclose(vm["forward"](*arrays).numpy()[0], reference(x[0], stored), 2e-7)


def cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


@pytest.mark.parametrize(
    "case",
    [f"compressed-tensors/int-w8a8-{kind}" for kind in ("dynamic", "static", "static-asym")]
    + ["msmodelslim/w8a8-static-fp16", "msmodelslim/w8a8-static-bf16"],
)
def test_the_tools_own_forward(case: str) -> None:
    """Which rounds its input as well: in the model's dtype, by token (max / 127.5) or as stored."""
    ckpt = Checkpoint.open(GOLDEN / case)
    expected, source = Checkpoint.open(GOLDEN / case / "expected.safetensors"), detect(ckpt)
    layers = expected.layers("output")
    assert layers
    for layer in layers:
        q = source.read(ckpt, layer)
        scheme = STATIC if "static" in case else DYNAMIC
        stored = scheme.encode(q)  # type: ignore[arg-type]
        assert np.array_equal(
            scheme.decode(stored).dequantize(), DYNAMIC.decode(stored).dequantize()
        )
        got, bias = reference(expected.tensor(f"{layer}.input"), stored), source.bias(ckpt, layer)
        wanted = expected.tensor(f"{layer}.output") - (0 if bias is None else bias.astype("f4"))
        assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


def test_static_inputs_of_their_own_stand_apart() -> None:
    """Fused where they are equal; weights without any are refused."""
    one, other = tensor(True), replace(tensor(True), input_zero=np.array(3, np.float32))
    assert concat(STATIC.align([one, one], "l")[0]).input_zero == -7  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="static activation scale"):
        concat([one, other])
    with pytest.raises(CannotExpress, match="no static activation scale"):
        STATIC.encode(tensor(False))


def test_the_bytes_are_the_weight_only_schemes() -> None:
    w = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    plain = SCHEMES["q8f16_1_gk"]
    one, other = (s.encode(s.quantize(w)) for s in (DYNAMIC, plain))
    assert all(np.array_equal(one[name], other[name]) for name in other)
    assert DYNAMIC.params(8, 64) == plain.params(8, 64)

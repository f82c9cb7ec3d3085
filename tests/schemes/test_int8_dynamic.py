"""W8A8 with activations rounded while running: whole-number sums to the last bit, on every unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.s_tir import dlight

from mlc_bridge.compiler.target import host_target
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import Checkpoint, detect
from tir_schedules import RULES

GOLDEN = Path(__file__).parents[1] / "golden" / "sources" / "compressed-tensors"
SCHEME = SCHEMES["i8_i8_f16_dynamic"]
N, K = 50, 200  # neither fills whole tiles or vectors
Array = np.ndarray[Any, Any]
UNITS = {
    "host": None,
    "avx2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    "sse2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
}


class Layer(nn.Module):
    def __init__(self) -> None:
        for suffix, spec in SCHEME.params(N, K).items():
            setattr(self, suffix, nn.Parameter(spec.shape, spec.dtype))

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        stored = {suffix: getattr(self, suffix) for suffix in SCHEME.params(N, K)}
        return SCHEME.linear(x, stored, "float32")


def built(target: tvm.target.Target) -> tuple[relax.VirtualMachine, list[str], str]:
    spec = {"forward": {"x": nn.spec.Tensor([1, "m", K], "float16")}}
    module, params = Layer().export_tvm(spec)
    with target:
        module = relax.transform.LegalizeOps()(module)
        module = dlight.ApplyDefaultSchedule(*RULES(target))(module)
    kernel = module["int8_matmul"].script()
    lib = relax.build(module, target)
    return relax.VirtualMachine(lib, tvm.cpu()), [name for name, _ in params], kernel


def reference(x: Array, stored: dict[str, Array]) -> Array:
    """The equation, in integers and then float32."""
    x = x.astype(np.float32)
    largest = np.abs(x).max(axis=1, keepdims=True)
    step = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    codes = stored["q_weight"].astype(np.int64) - stored["q_zero"].astype(np.int64)
    total = np.rint(x / step).astype(np.int64) @ codes.T
    assert np.abs(total).max() < 2**31
    exact: Array = total.astype(np.float32) * (step * stored["q_scale"].astype(np.float32).T)
    return exact


@pytest.mark.parametrize("unit", UNITS)
def test_bit_for_bit(unit: str) -> None:
    target = tvm.target.Target(UNITS[unit]) if UNITS[unit] else host_target()
    vm, names, kernel = built(target)
    assert "vpdpbusd" in kernel or unit != "host" or "avx512_vnni" not in cpu_flags()
    rng = np.random.default_rng(0)
    stored = {
        "q_weight": rng.integers(0, 256, (N, K), np.uint8),
        "q_zero": rng.integers(0, 257, (N, 1)).astype(np.float16),
        "q_scale": rng.random((N, 1)).astype(np.float16),
    }
    for rows in (1, 7):
        x = rng.normal(size=(1, rows, K)).astype(np.float16)
        x[0, -1] *= rows == 1  # a row of zeros among others
        arrays = [tvm.runtime.tensor(a) for a in (x, *(stored[name] for name in names))]
        assert np.array_equal(vm["forward"](*arrays).numpy()[0], reference(x[0], stored))


def cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def test_the_tools_own_forward() -> None:
    """Whose forward rounds its input by token as well: in bfloat16, and by 127.5."""
    case = GOLDEN / "int-w8a8-dynamic"
    ckpt, expected = Checkpoint.open(case), Checkpoint.open(case / "expected.safetensors")
    for layer in expected.layers("output"):
        q = detect(ckpt).read(ckpt, layer)
        stored = SCHEME.encode(q)  # type: ignore[arg-type]
        got = reference(expected.tensor(f"{layer}.input"), stored)
        bias = detect(ckpt).bias(ckpt, layer)
        wanted = expected.tensor(f"{layer}.output") - (0 if bias is None else bias.astype("f4"))
        assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


def test_the_bytes_are_the_weight_only_schemes() -> None:
    w = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    plain = SCHEMES["q8f16_1_gk"]
    one, other = (s.encode(s.quantize(w)) for s in (SCHEME, plain))
    assert all(np.array_equal(one[name], other[name]) for name in other)
    assert SCHEME.params(8, 64) == plain.params(8, 64)

"""Every source against files that the quantization tools themselves wrote (tests/golden/sources).

Codes and zeros must be equal; weights agree to the rounding of the type the tool computed in, which
is the type of the scales or of its weights; outputs agree within the tool's own arithmetic.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import SOURCES, Checkpoint, detect

GOLDEN = Path(__file__).parents[1] / "golden" / "sources"
CASES = sorted(p.parent for p in GOLDEN.glob("*/*/expected.safetensors"))
ROUNDING = {np.dtype(np.float16): 2**-11, np.dtype(ml_dtypes.bfloat16): 2**-8}


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def open_case(case: Path) -> tuple[Checkpoint, Checkpoint]:
    return Checkpoint.open(case), Checkpoint.open(case / "expected.safetensors")


def expected_layers(expected: Checkpoint) -> tuple[str, ...]:
    return expected.layers("weight")


OURS = [name for name, s in SOURCES.items() if type(s).__module__.startswith("mlc_bridge.")]


@pytest.mark.parametrize("name", OURS)
def test_every_source_has_goldens(name: str) -> None:
    assert any(case.parent.name == name for case in CASES)


def test_every_golden_has_a_source() -> None:
    assert {case.parent.name for case in CASES} <= set(SOURCES)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_is_detected_by_itself(case: Path) -> None:
    ckpt, _ = open_case(case)
    assert detect(ckpt).name == case.parent.name


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_weights_codes_and_zeros(case: Path) -> None:
    ckpt, expected = open_case(case)
    source = SOURCES[case.parent.name]
    for layer in expected_layers(expected):
        weight = expected.tensor(f"{layer}.weight")
        source.check(ckpt, layer, weight.shape)
        assert all(part in ckpt for part in source.parts(ckpt, layer))
        q = source.read(ckpt, layer)
        if not isinstance(q, QTensor):
            assert np.array_equal(q.astype(np.float32), weight)
            continue
        assert layer in source.layers(ckpt)
        for name, got in (("codes", q.codes), ("zeros", q.zero)):
            if f"{layer}.{name}" in expected and got is not None:
                wanted = expected.tensor(f"{layer}.{name}")
                offset = 1 << (q.bits - 1) if wanted.dtype.kind == "i" else 0
                assert np.array_equal(in_order(q, got.unpack(), name), wanted.astype(int) + offset)
        rounding = max(ROUNDING.get(x.dtype, 1e-6) for x in (q.scale, weight))
        bound = rounding * np.abs(weight.astype(np.float32)) + 6e-8
        assert (np.abs(q.dequantize() - weight) <= bound + extra(case, q)).all()


def in_order(q: QTensor, codes: np.ndarray, name: str) -> np.ndarray:
    """Codes with their input columns where the layer has them (activation order moves them)."""
    if q.perm is None or name != "codes":
        return codes
    out = np.empty_like(codes)
    out[:, q.perm] = codes
    return out


def extra(case: Path, q: QTensor) -> float | np.ndarray:
    """Formats that store the product -(scale * zero) rounded lose up to half its last place."""
    if case.parent.name not in ("autoawq-gemv-fast", "llm-awq"):
        return 0.0
    step = np.repeat(q.scale.astype(np.float32), q.block[1], axis=1)[:, : q.shape[1]]
    return ROUNDING[q.scale.dtype] * 15 * step


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_layer_output(case: Path) -> None:
    """x @ W^T + bias against the tool's own forward, where it ran on a CPU."""
    ckpt, expected = open_case(case)
    source = SOURCES[case.parent.name]
    layers = [x for x in expected_layers(expected) if f"{x}.output" in expected]
    if not layers:
        pytest.skip("the tool has no forward on a CPU")
    for layer in layers:
        q = source.read(ckpt, layer)
        weight = q.dequantize() if isinstance(q, QTensor) else q
        got = static_input(ckpt, layer, expected.tensor(f"{layer}.input")) @ weight.T
        bias = source.bias(ckpt, layer)
        wanted = expected.tensor(f"{layer}.output")
        got = got if bias is None else got + bias.astype(np.float32)
        allowed = 0.003 if q.scale.dtype == np.float16 and q.bits < 8 else 0.05
        assert np.abs(got - wanted).max() <= allowed * np.abs(wanted).max()


def static_input(ckpt: Checkpoint, layer: str, x: np.ndarray) -> np.ndarray:
    """The input rounded to the int8 grid that a layer with static activations carries."""
    if f"{layer}.input_scale" not in ckpt or ckpt.dtype(f"{layer}.weight") != np.int8:
        return x
    scale = ckpt.tensor(f"{layer}.input_scale").astype(np.float32)
    names = [n for n in (f"{layer}.input_zero_point", f"{layer}.input_offset") if n in ckpt]
    zero = ckpt.tensor(names[0]).astype(np.float32) if names else np.float32(0)
    return (np.clip(np.round(x / scale) + zero, -128, 127) - zero) * scale


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_bias(case: Path) -> None:
    ckpt, expected = open_case(case)
    source = SOURCES[case.parent.name]
    for layer in expected_layers(expected):
        if f"{layer}.bias" in expected:
            bias, wanted = source.bias(ckpt, layer), expected.tensor(f"{layer}.bias")
            assert bias is not None
            assert np.allclose(bias.astype(np.float32), wanted, rtol=1e-3, atol=1e-3)

"""The promise over every scheme and every kind of codes: the same weights, or CannotExpress."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import AWQ, GPTQ4, NIBBLES4, NK4, PLAIN, PackedArray, Packing, pack
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.schemes.dense import Dense

FLOATS = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
PACKINGS = {
    "uint3": [Packing(3, "k")],
    "uint4": [AWQ, GPTQ4, NK4],
    "uint8": [PLAIN, Packing(8, "k", transposed=True)],
}
FOURS = {"float4_e2m1fn": NIBBLES4, "nf4": NK4}
KINDS = [*PACKINGS, *FLOATS, *FOURS]
SCALES = [
    *(np.float16, ml_dtypes.bfloat16, np.float32),
    *(ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fn),
]


@dataclass(frozen=True)
class Case:
    """What a file can bring: sizes, granularity, range of the codes, zeros and scales."""

    seed: int
    n: int
    k: int
    block: str
    group: int
    spread: int
    zeros: str
    scale: type
    look: str
    static: bool
    permuted: bool


CASES = st.builds(
    Case,
    seed=st.integers(0, 1 << 20),
    n=st.sampled_from([8, 5, 16, 130]),
    k=st.sampled_from([128, 256, 64, 72, 100, 160]),
    block=st.sampled_from(["tensor", "channel", "group", "block"]),
    group=st.sampled_from([32, 64, 128, 40, 16]),
    spread=st.sampled_from([256, 15, 7, 2, 1]),
    zeros=st.sampled_from(["none", "middle", "below the middle", "each", "above all", "far"]),
    scale=st.sampled_from(SCALES),
    look=st.sampled_from(["usual", "one", "equal", "negative", "tiny", "some zero"]),
    static=st.booleans(),
    permuted=st.sampled_from([False, False, False, True]),
)


def tensor(kind: str, case: Case) -> QTensor:
    rng = np.random.default_rng(case.seed)
    n, k = case.n, case.k
    blocks = {"tensor": (n, k), "channel": (1, k), "group": (1, case.group), "block": (128, 128)}
    block = blocks[case.block]
    grid = (-(-n // block[0]), -(-k // block[1]))
    if kind in FLOATS:  # whole numbers too, since those an integer scheme could take for its own
        values = rng.integers(-case.spread, case.spread, (n, k)) / rng.choice([1, 4])
        codes, zero = pack(values.astype(FLOATS[kind]), PLAIN), None
    elif kind in FOURS:
        plain = pack(rng.integers(0, 16, (n, k), np.uint8), FOURS[kind])
        codes, zero = replace(plain, floats=kind), None
    else:
        packing = PACKINGS[kind][case.seed % len(PACKINGS[kind])]
        top = 1 << packing.bits
        middle = top // 2 - (case.zeros == "below the middle")
        low, high = max(0, middle - case.spread), min(top, middle + case.spread)
        codes = pack(rng.integers(low, high, (n, k), np.uint8), packing)
        each = rng.integers(0, top, grid, np.uint8)
        zeros = each if case.zeros == "each" else np.full(grid, middle, np.uint8)
        zero = None if case.zeros == "none" else pack(zeros, replace(packing, axis="n"))
        if case.zeros in ("above all", "far"):  # GPTQ's 16 and 256, and what no tool writes
            far = top if case.zeros == "above all" else 65535
            zero = PackedArray(np.full(grid, far, np.uint16), PLAIN, grid)
    return QTensor(
        codes, scales(rng, case, grid), zero, block,
        perm=rng.permutation(k) if case.permuted else None,
        input_scale=np.array(0.5, np.float32) if case.static else None,
        outer=rng.uniform(0.5, 2, n).astype(np.float32) if kind in FOURS and case.static else None,
    )  # fmt: skip


def scales(rng, case, grid):
    scale = rng.uniform(0.001, 0.1, grid)
    if case.look == "one":
        scale[:] = 1
    elif case.look == "equal":
        scale[:] = 0.03
    elif case.look == "negative":
        scale *= rng.choice([-1, 1], grid)
    elif case.look == "tiny":
        scale *= 1e-5
    elif case.look == "some zero":
        scale *= rng.choice([0, 1], grid)
    if case.scale in (ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fn):
        scale = np.maximum(np.abs(scale), 1e-9)
    return scale.astype(case.scale)


def declared(scheme, q: QTensor) -> QTensor:
    """``q`` with its scales as the scheme stores them: all that may round, by half a step."""
    specs = scheme.params(*q.shape).items()
    stored = [spec.dtype for name, spec in specs if "scale" in name and spec.filled_by == "convert"]
    dtype = stored[0] if stored and stored[0] != "uint8" else "float32"
    with np.errstate(under="ignore"):
        scale = q.scale.astype(np.float32).astype(getattr(ml_dtypes, dtype, dtype))
    return replace(q, scale=scale)


def back(scheme, params, q: QTensor):
    if isinstance(scheme, Dense):
        return params["weight"].astype(np.float32)
    return scheme.decode(params).dequantize()[:, : q.shape[1]]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(case=CASES)
def test_equal_or_refused(kind: str, case: Case) -> None:
    q = tensor(kind, case)
    exact = q.dequantize()
    for scheme in SCHEMES.values():
        try:
            params = scheme.encode(q, "layer")
        except CannotExpress:
            continue
        got = back(scheme, params, q)
        if not np.array_equal(got, exact):
            assert np.array_equal(got, declared(scheme, q).dequantize()), (scheme.name, case)
            step = ml_dtypes.finfo(scheme.model_dtype).eps / 2
            assert np.all(np.abs(got - exact) <= np.abs(exact) * step), (scheme.name, case)


TAKERS = {
    "uint3": {"q3f16_0", "q3f16_1", "q8f16_1_gk", "q0f32"},
    "uint4": {"q4f16_1", "q4f16_autoawq_g32", "q4bf16_0", "q8f16_1_g32", "q0f32"},
    "uint8": {"q8f16_1", "q8f16_1_gk", "q8f16_1_g128", "q0f32"},
    "float8_e4m3fn": {
        "e4m3_e4m3_f16",
        "fp8_e4m3fn_f16_row_scale",
        "fp8_e4m3fn_bf16_row_scale",
        "q0f32",
    },
    "float8_e5m2": {"e5m2_e5m2_f16", "fp8_e5m2_f16_row_scale", "q0f32"},
    "float4_e2m1fn": {"nvfp4_f16", "nvfp4_bf16", "mxfp4_f16", "mxfp4_bf16", "q0f32"},
    "nf4": {"nf4_f16", "nf4_bf16", "q0f32"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_schemes_that_take_it(kind: str) -> None:
    """That the property is not true by refusing everything."""
    case = Case(0, 8, 240, "tensor", 40, 2, "below the middle", np.float16, "one", False, False)
    wide = replace(case, k=256)
    narrow = [ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fn, np.float32]
    takers = set()
    for each in (case, wide, *(replace(wide, scale=dtype) for dtype in narrow)):
        q = tensor(kind, each)
        for scheme in SCHEMES.values():
            try:
                scheme.encode(q)
            except CannotExpress:
                continue
            takers.add(scheme.name)
    assert takers >= TAKERS[kind]
    others = {s for k, names in TAKERS.items() if k != kind for s in names} - TAKERS[kind]
    assert not takers & {s for s in others if not s.startswith(("q0", "q8f16_1_g", "i8"))}

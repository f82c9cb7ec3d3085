"""The canonical form: dequantize by its equation element by element, and stacking along n."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_bridge.packing import AWQ, GPTQ4, GPTQ4_ZEROS, NK4, PLAIN, PackedArray, from_signed, pack
from mlc_bridge.qtensor import QTensor, concat, constant_zero

PAIRS = {"awq": (AWQ, AWQ), "gptq": (GPTQ4, GPTQ4_ZEROS), "nk": (NK4, NK4)}


def make(n: int, k: int, block: tuple[int, int], kind: str, seed: int = 0) -> QTensor:
    rng = np.random.default_rng(seed)
    grid = (-(-n // block[0]), -(-k // block[1]))
    codes, zeros = PAIRS[kind]
    return QTensor(
        codes=pack(rng.integers(0, 16, (n, k), dtype=np.uint8), codes),
        scale=rng.uniform(0.01, 1, grid).astype(np.float16),
        zero=pack(rng.integers(0, 16, grid, dtype=np.uint8), zeros),
        block=block,
    )


@settings(deadline=None)
@given(
    st.integers(1, 24), st.integers(1, 24), st.integers(1, 24), st.integers(1, 24),
    st.sampled_from(sorted(PAIRS)), st.booleans(), st.booleans(),
)  # fmt: skip
def test_dequantize_is_the_equation(
    n: int, k: int, bn: int, bk: int, kind: str, with_zero: bool, with_perm: bool
) -> None:
    q = make(n, k, (bn, bk), kind)
    perm = np.random.default_rng(1).permutation(k) if with_perm else None
    q = replace(q, perm=perm, zero=q.zero if with_zero else None)
    codes = q.codes.unpack()
    zeros = q.zero.unpack() if q.zero is not None else np.zeros(q.grid)
    w = q.dequantize()
    assert w.dtype == np.float32
    for i in range(n):
        for j in range(k):
            at = (i // bn, j // bk)
            value = (float(codes[i, j]) - float(zeros[at])) * float(q.scale[at])
            assert w[i, j if perm is None else perm[j]] == np.float32(value)


def test_float8_codes() -> None:
    values = np.array([[1.0, -2.0], [448.0, 0.5]])
    words = values.astype(ml_dtypes.float8_e4m3fn)
    q = QTensor(PackedArray(words, PLAIN, (2, 2)), np.float32([[2.0]]), None, (2, 2))
    assert q.dequantize().tolist() == (values * 2).tolist()


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("block", [(1, 8), (1, 32), (4, 8), (100, 32)])
@pytest.mark.parametrize("rows", [(8, 16, 8), (3, 5), (16,)])
def test_concat_stacks_weights(kind: str, block: tuple[int, int], rows: tuple[int, ...]) -> None:
    parts = [make(n, 32, block, kind, seed) for seed, n in enumerate(rows)]
    whole = concat(parts)
    assert np.array_equal(whole.dequantize(), np.concatenate([p.dequantize() for p in parts]))
    assert whole.codes.packing == parts[0].codes.packing


def test_concat_of_per_tensor_scales() -> None:
    parts = [make(8, 16, (8, 16), "nk", seed) for seed in (1, 2)]
    whole = concat(parts)
    assert whole.block == (1, 16)
    assert np.array_equal(whole.dequantize(), np.concatenate([p.dequantize() for p in parts]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": (1, 16), "scale": np.ones((8, 2), np.float16), "zero": None}, "block"),
        ({"perm": np.arange(32)[::-1]}, "activation order"),
        ({"input_scale": np.float32(2.0)}, "static activation scale"),
    ],
)
def test_concat_refuses(change: dict, message: str) -> None:
    q = make(8, 32, (1, 8), "nk")
    with pytest.raises(ValueError, match=message):
        concat([q, replace(q, **change)])


def test_shapes_are_held_together() -> None:
    q = make(8, 32, (1, 8), "nk")
    with pytest.raises(ValueError, match="scale of shape"):
        replace(q, scale=np.ones((8, 3), np.float16))
    with pytest.raises(ValueError, match="zero of shape"):
        replace(q, zero=constant_zero(8, (8, 3), NK4))


def test_kinds_are_held_apart() -> None:
    """Equal bits are not equal codes: float8 beside uint8, e4m3 beside e5m2."""
    bytes_ = np.arange(64, dtype=np.uint8).reshape(2, 32)
    words = [bytes_, bytes_.view(ml_dtypes.float8_e4m3fn), bytes_.view(ml_dtypes.float8_e5m2)]
    one = np.ones((1, 1), np.float32)
    parts = [QTensor(PackedArray(w, PLAIN, (2, 32)), one, None, (2, 32)) for w in words]
    assert [p.kind for p in parts] == ["uint8", "float8_e4m3fn", "float8_e5m2"]
    assert make(8, 32, (1, 8), "awq").kind == "uint4"
    for first, second in ((0, 1), (1, 2)):
        with pytest.raises(ValueError, match="kind of codes"):
            concat([parts[first], parts[second]])
        with pytest.raises(ValueError, match="no integers"):
            from_signed(words[second], PLAIN, (2, 32))
    with pytest.raises(ValueError, match="zero points of float8_e4m3fn"):
        replace(parts[0], zero=PackedArray(one.astype(ml_dtypes.float8_e4m3fn), PLAIN, (1, 1)))


@pytest.mark.parametrize("dtype", [np.int8, np.float32, ml_dtypes.float8_e4m3fn])
def test_only_unsigned_codes_are_packed(dtype: type) -> None:
    with pytest.raises(ValueError, match="unsigned"):
        pack(np.full((8, 8), -1, np.int8).astype(dtype), NK4)
    if dtype != ml_dtypes.float8_e4m3fn:
        with pytest.raises(ValueError, match="neither unsigned nor float8"):
            PackedArray(np.ones((8, 8), dtype), PLAIN, (8, 8))

"""Bit layouts against a scalar reference: position i of a word holds element order[i]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_layouts import gemv_fast_words, marlin_words

from mlc_bridge.packing import (
    AWQ,
    GPTQ4,
    GPTQ4_ZEROS,
    NK4,
    PLAIN,
    Packing,
    float32_bits,
    from_gemv_fast,
    from_marlin,
    from_signed,
    marlin_scales,
    pack,
    repack,
)

NAMED = {"AWQ": AWQ, "GPTQ4": GPTQ4, "GPTQ4_ZEROS": GPTQ4_ZEROS, "NK4": NK4, "PLAIN": PLAIN}


@st.composite
def packings(draw: st.DrawFn) -> Packing:
    word_bits = draw(st.sampled_from([8, 16, 32, 64]))
    bits = draw(st.integers(1, 8))
    per_word = word_bits // bits
    order = tuple(draw(st.permutations(range(per_word)))) if draw(st.booleans()) else ()
    return Packing(bits, draw(st.sampled_from(["n", "k"])), draw(st.booleans()), order, word_bits)


@st.composite
def codes_and(draw: st.DrawFn, number: int) -> tuple[np.ndarray, list[Packing]]:
    first = draw(packings())
    others = [
        draw(packings().map(lambda p: Packing(first.bits, p.axis, p.transposed, (), p.word_bits)))
        for _ in range(number - 1)
    ]
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    return rng.integers(0, 1 << first.bits, (n, k), dtype=np.uint8), [first, *others]


def reference(codes: np.ndarray, p: Packing) -> np.ndarray:
    """Python integers, one code at a time."""
    words = np.zeros(p.words_shape(*codes.shape), object)
    at = {element: position for position, element in enumerate(p.order)}
    for (n, k), code in np.ndenumerate(codes):
        along, across = (n, k) if p.axis == "n" else (k, n)
        word, shift = along // p.per_word, p.bits * at[along % p.per_word]
        index = (word, across) if p.word_axis == 0 else (across, word)
        words[index] |= int(code) << shift
    return words


@settings(deadline=None)
@given(codes_and(1))
def test_pack_is_the_reference(drawn: tuple[np.ndarray, list[Packing]]) -> None:
    codes, (packing,) = drawn
    packed = pack(codes, packing)
    if packing.per_word > 1:
        assert packed.words.dtype == np.dtype(f"uint{packing.word_bits}")
    assert packed.words.astype(object).tolist() == reference(codes, packing).tolist()
    assert np.array_equal(packed.unpack(), codes)


@settings(deadline=None)
@given(codes_and(2))
def test_repack_keeps_codes(drawn: tuple[np.ndarray, list[Packing]]) -> None:
    codes, (one, two) = drawn
    packed = repack(pack(codes, one), two)
    assert packed.packing == two
    assert np.array_equal(packed.words, pack(codes, two).words)


@pytest.mark.parametrize("source", NAMED)
@pytest.mark.parametrize("target", ["AWQ", "GPTQ4", "GPTQ4_ZEROS", "NK4"])
@pytest.mark.parametrize(
    "shape", [(8, 8), (128, 256), (1032, 520), (1032, 2064), (50, 100), (1, 1), (9, 4104)]
)
def test_repack_between_the_named(source: str, target: str, shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(7).integers(0, 16, shape, dtype=np.uint8)
    packed = repack(pack(codes, NAMED[source]), NAMED[target])
    assert np.array_equal(packed.words, pack(codes, NAMED[target]).words)
    assert packed.shape == shape


def test_equal_packing_is_the_same_object() -> None:
    packed = pack(np.zeros((8, 8), np.uint8), AWQ)
    assert repack(packed, AWQ) is packed


def test_awq_order() -> None:
    """Eight output channels 0..7 of one input channel in AutoAWQ's word."""
    packed = pack(np.arange(8, dtype=np.uint8)[:, None], AWQ)
    assert packed.words.tolist() == [[0x75316420]]


def test_code_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="code 16 does not fit 4 bits"):
        pack(np.full((8, 8), 16, np.uint8), AWQ)


def test_words_of_wrong_shape() -> None:
    with pytest.raises(ValueError, match="the packing wants"):
        type(pack(np.zeros((8, 8), np.uint8), AWQ))(np.zeros((8, 8), np.uint32), AWQ, (8, 8))


@pytest.mark.parametrize("shape", [(4, 64), (8, 128), (12, 64), (524, 1088), (1032, 64), (8, 2176)])
def test_gemv_fast(shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(5).integers(0, 16, shape, dtype=np.uint8)
    packed = from_gemv_fast(gemv_fast_words(codes))
    assert packed.shape == shape
    assert np.array_equal(packed.words, pack(codes, AWQ).words)


@pytest.mark.parametrize("shape", [(64, 16), (192, 48), (64, 2064), (4160, 128)])
def test_marlin(shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(6).integers(0, 16, shape, dtype=np.uint8)
    packed = from_marlin(marlin_words(codes))
    assert packed.shape == shape
    assert np.array_equal(packed.words, pack(codes, AWQ).words)


def test_marlin_scales() -> None:
    natural = np.arange(2 * 128).reshape(2, 128)
    order = [i + 8 * j for i in range(8) for j in range(8)]
    grouped = natural.reshape(2, -1, 64)[..., order].reshape(2, 128)
    assert np.array_equal(marlin_scales(grouped, grouped=True), natural)
    order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    single = natural.reshape(2, -1, 32)[..., order].reshape(2, 128)
    assert np.array_equal(marlin_scales(single, grouped=False), natural)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", ["n", "k"])
def test_signed_codes(bits: int, axis: str) -> None:
    half = 1 << (bits - 1)
    codes = np.random.default_rng(8).integers(-half, half, (6, 10))
    packing = Packing(bits, axis, word_bits=8)
    stored = pack((codes & (2 * half - 1)).astype(np.uint8), packing).words.view(np.int8)
    assert np.array_equal(from_signed(stored, packing, (6, 10)).unpack(), codes + half)


def test_float32_bits() -> None:
    values = np.array([1.5, -2e-30, 3e8], np.float32)
    assert np.array_equal(float32_bits(values.view(np.int32).astype(np.int64)), values)

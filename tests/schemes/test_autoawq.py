"""The AutoAWQ family: the tool's own files pass through, and what cannot be held is refused."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import AWQ, GPTQ4, GPTQ4_ZEROS, NK4, PLAIN, pack, repack
from mlc_bridge.qtensor import QTensor, constant_zero
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.schemes.autoawq import ROWS

N, K = 24, 256
FAMILY = [row.name for row in ROWS]


def tensor(group, packing=AWQ, dtype=np.float16, seed=0):
    rng = np.random.default_rng(seed)
    zeros = {NK4: NK4, GPTQ4: GPTQ4_ZEROS}.get(packing, AWQ)
    return QTensor(
        codes=pack(rng.integers(0, 16, (N, K), np.uint8), packing),
        scale=(rng.random((N, K // group)) * 0.1 + 1e-3).astype(dtype),
        zero=pack(rng.integers(0, 16, (N, K // group), np.uint8), zeros),
        block=(1, group),
    )


@pytest.mark.parametrize("name", FAMILY)
def test_declared_and_encoded_parameters_agree(name):
    scheme = SCHEMES[name]
    encoded = scheme.encode(tensor(K))
    declared = scheme.params(N, K)
    assert {k: (v.shape, v.dtype.name) for k, v in encoded.items()} == {
        k: (v.shape, v.dtype) for k, v in declared.items()
    }


@pytest.mark.parametrize("packing", [AWQ, GPTQ4, NK4])
@pytest.mark.parametrize(("group", "name"), [(128, "q4f16_autoawq"), (32, "q4f16_autoawq_g32")])
def test_codes_zeros_and_scales_survive_from_any_packing(packing, group, name):
    q = tensor(group, packing)
    back = SCHEMES[name].decode(SCHEMES[name].encode(q))
    assert np.array_equal(back.codes.unpack(), q.codes.unpack())
    assert np.array_equal(back.zero.unpack(), q.zero.unpack())
    assert np.array_equal(back.scale, q.scale)
    assert np.array_equal(back.dequantize(), q.dequantize())


def test_equal_packing_passes_the_words_themselves():
    q = tensor(128)
    encoded = SCHEMES["q4f16_autoawq"].encode(q)
    assert encoded["qweight"] is q.codes.words
    assert encoded["qzeros"] is q.zero.words


@pytest.mark.parametrize("source", [128, K])
@pytest.mark.parametrize(("name", "group"), [("q4f16_autoawq_g64", 64), ("q4f16_autoawq_g32", 32)])
def test_a_coarser_group_is_the_same_tensor_in_a_finer_scheme(source, name, group):
    q = tensor(source)
    back = SCHEMES[name].decode(SCHEMES[name].encode(q))
    assert back.block == (1, group)
    assert np.array_equal(back.dequantize(), q.dequantize())


def test_a_symmetric_source_has_its_constant_zero():
    q = replace(tensor(128), zero=constant_zero(8, (N, K // 128), NK4))
    encoded = SCHEMES["q4f16_autoawq"].encode(q)
    assert set(encoded["qzeros"].ravel()) == {0x88888888}


def test_no_zero_means_zero():
    q = replace(tensor(128), zero=None)
    back = SCHEMES["q4f16_autoawq"].decode(SCHEMES["q4f16_autoawq"].encode(q))
    assert np.array_equal(back.dequantize(), q.dequantize())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_wider_scales_round_within_2_to_the_minus_11(dtype):
    q = tensor(128, dtype=dtype)
    scales = SCHEMES["q4f16_autoawq"].encode(q)["scales"].T.astype(np.float64)
    exact = q.scale.astype(np.float64)
    assert np.all(np.abs(scales - exact) <= exact * 2.0**-11)
    if dtype is not np.float32:
        assert np.array_equal(scales, exact)


def test_a_dead_group_may_have_any_scale():
    q = tensor(128, dtype=np.float32)
    codes = q.codes.unpack().copy()
    codes[3, 128:] = q.zero.unpack()[3, 1]
    scale = q.scale.copy()
    scale[3, 1] = 6.67e-7
    dead = replace(q, codes=pack(codes, AWQ), scale=scale)
    back = SCHEMES["q4f16_autoawq"].decode(SCHEMES["q4f16_autoawq"].encode(dead))
    assert np.array_equal(back.codes.unpack(), codes)
    assert not back.dequantize()[3, 128:].any()
    with pytest.raises(CannotExpress, match="normal range"):
        SCHEMES["q4f16_autoawq"].encode(replace(q, scale=scale))


def eight_bit(q):
    return replace(q, codes=pack(q.codes.unpack(), PLAIN))


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (eight_bit, "q4f16_autoawq", "uint8"),
        (lambda q: replace(q, perm=np.arange(K)[::-1]), "q4f16_autoawq", "activation order"),
        (lambda q: replace(q, input_scale=np.float32(1)), "q4f16_autoawq", "activation scale"),
        (lambda q: q, "q4f16_autoawq_gk", "groups of 128 do not divide into groups of 256"),
        (lambda q: replace(q, zero=constant_zero(16, q.grid, PLAIN)), "q4f16_autoawq", "0..15"),
        (lambda q: replace(q, scale=q.scale.astype(np.float32) * 1e-9), "q4f16_autoawq", "range"),
        (lambda q: replace(q, scale=q.scale.astype(np.float32) * 1e9), "q4f16_autoawq", "range"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(change, name, reason):
    with pytest.raises(CannotExpress, match=rf"model\.up.*{reason}.*--requantize") as caught:
        SCHEMES[name].encode(change(tensor(128)), "model.up")
    assert caught.value.tensor == "model.up"
    assert caught.value.scheme == name


def test_rows_that_do_not_fill_words_are_refused():
    with pytest.raises(CannotExpress, match="n % 8"):
        SCHEMES["q4f16_autoawq"].params(12, 128)
    with pytest.raises(CannotExpress, match="k % 128"):
        SCHEMES["q4f16_autoawq"].params(16, 192)


def autoawq_reference(w, group):
    """AutoAWQ's pseudo_quantize_tensor written out per group in float16, one by one."""
    codes, scales, zeros = [], [], []
    for start in range(0, len(w), group):
        part = w[start : start + group].astype(np.float16)
        low, high = part.min(), part.max()
        scale = np.float16(max(np.float16(high - low), np.float16(1e-5)) / np.float16(15))
        zero = min(max(-round(float(np.float16(low / scale))), 0), 15)
        codes += [min(max(round(float(np.float16(x / scale))) + zero, 0), 15) for x in part]
        scales.append(scale)
        zeros.append(zero)
    return codes, scales, zeros


@pytest.mark.parametrize("name", FAMILY)
def test_quantizing_follows_autoawq(name):
    w = np.random.default_rng(3).normal(size=(8, K)).astype(np.float16)
    w[0] = np.abs(w[0])
    w[1] = 0
    q = SCHEMES[name].quantize(w)
    for row in range(8):
        codes, scales, zeros = autoawq_reference(w[row], q.block[1])
        assert np.array_equal(q.codes.unpack()[row], codes)
        assert np.array_equal(q.scale[row], scales)
        assert np.array_equal(q.zero.unpack()[row], zeros)


def test_quantized_then_dequantized_is_near():
    w = np.random.default_rng(5).normal(size=(N, K)).astype(np.float32)
    q = SCHEMES["q4f16_autoawq"].quantize(w)
    step = np.repeat(q.scale.astype(np.float32), 128, axis=1)
    # The zero point rounds too, so codes at the ends of the range may be clipped by half a step.
    assert np.all(np.abs(q.dequantize() - w) <= step * 1.02)
    assert np.mean(np.abs(q.dequantize() - w) <= step * 0.51) > 0.98


def test_repacking_costs_no_bit():
    q = tensor(128, GPTQ4)
    assert np.array_equal(repack(repack(q.codes, AWQ), GPTQ4).words, q.codes.words)

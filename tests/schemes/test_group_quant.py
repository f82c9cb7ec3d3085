"""MLC's group schemes against arithmetic written out; what other sources land in them exactly."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import GPTQ4, NK4, PLAIN, PackedArray, Packing, pack
from mlc_bridge.qtensor import QTensor, constant_zero
from mlc_bridge.schemes import SCHEMES, for_role
from mlc_bridge.schemes.group_quant import ROWS

NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def weights(n=12, k=256, seed=0, dtype=np.float16):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, k)) * 10.0 ** rng.uniform(-4, 2, (n, 1))
    w[0] = 0  # a padded row
    w[1, :32] = rng.integers(-3, 4, 32) * 2.0**-24  # subnormal in float16, scale rounds to 0
    w[2] = np.round(w[2] * 7) / 7
    return w.astype(dtype)


def written_out(w, bits, group, dtype, transposed):
    """MLC's expression, one element at a time in numpy scalars of the model dtype."""
    kind, m = NUMPY[dtype], 2 ** (bits - 1) - 1
    n, k = w.shape
    codes = np.zeros((n, k), np.uint8)
    scale = np.zeros((n, -(-k // group)), kind)
    # bfloat16 arithmetic runs in float32; only what is stored rounds.
    work = kind if dtype == "float16" else np.float32
    for i in range(n):
        for g in range(scale.shape[1]):
            part = w[i, g * group : (g + 1) * group].astype(kind).astype(work)
            exact = work(np.abs(part).max()) / work(m)
            scale[i, g] = exact
            s = exact if dtype == "bfloat16" and transposed else work(scale[i, g])
            for j, value in enumerate(part):
                if s == 0:
                    code = 2 * m if value > 0 else 0
                else:
                    code = min(max(round(float(value / s + work(m))), 0), 2 * m)
                codes[i, g * group + j] = code
    return codes, scale


@pytest.mark.parametrize("source", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_rounding_is_mlcs(row, source):
    w = weights(dtype=source)
    q = row.quantize(w)
    codes, scale = written_out(w, row.bits, row.group, row.model_dtype, row.transposed)
    assert np.array_equal(q.scale, scale)
    assert np.array_equal(q.codes.unpack(), codes)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
@pytest.mark.parametrize("k", [256, 240, 100])
def test_encoded_as_declared_and_back(row, k):
    w = weights(k=k)
    q = row.quantize(w)
    stored = row.encode(q)
    assert {s: (a.shape, a.dtype.name) for s, a in stored.items()} == {
        s: (spec.shape, spec.dtype) for s, spec in row.params(12, k).items()
    }
    back = row.decode(stored)
    assert np.array_equal(back.dequantize()[:, :k], q.dequantize())
    error = np.abs(back.dequantize()[:, :k] - w.astype(np.float32))
    step = np.repeat(q.scale.astype(np.float32), row.group, axis=1)[:, :k]
    # Quotients and sums keep steps of 1/16 and 1/8 in float16, so eight bits round worse.
    # A scale below the normal range of float16 is off by more than 2^-11 itself.
    normal = step >= 2.0**-14
    assert np.all(error[normal] <= step[normal] * (0.6 if row.bits == 8 else 0.52))


def test_kn_is_nk_turned_and_the_embedding_stays_nk():
    w = weights()
    nk, kn = (SCHEMES[f"q4f16_{i}"] for i in (1, 0))
    straight, turned = nk.encode(nk.quantize(w)), kn.encode(kn.quantize(w))
    assert np.array_equal(straight["q_weight"], turned["q_weight"].T)
    assert np.array_equal(straight["q_scale"], turned["q_scale"].T)
    assert for_role(kn, "embedding").params(12, 256) == nk.params(12, 256)
    assert for_role(kn, "lm_head").params(12, 256) == kn.params(12, 256)


def test_which_roles_are_quantized():
    def roles(name):
        return [
            r for r in ("linear", "embedding", "lm_head", "router") if SCHEMES[name].quantizes(r)
        ]

    assert roles("q4f16_1") == ["linear", "embedding", "lm_head"]
    assert roles("q4f16_2") == roles("q8f16_1") == ["linear"]


def source(zero, low=0, high=16, packing=NK4, group=32, dtype=np.float16):
    rng = np.random.default_rng(1)
    codes = rng.integers(low, high, (8, 128), np.uint8)
    codes[:, ::group] = low
    return QTensor(
        codes=pack(codes, packing),
        scale=rng.uniform(0.01, 0.1, (8, 128 // group)).astype(dtype),
        zero=constant_zero(zero, (8, 128 // group), PLAIN),
        block=(1, group),
    )


@pytest.mark.parametrize("packing", [NK4, GPTQ4])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("name", ["q4f16_0", "q4f16_1", "q4f32_1"])
def test_symmetric_gptq_lands_exactly(name, packing, group):
    """Codes 0..15 around 8 hold -8, which is one too low: the group lands negated."""
    q = source(8, packing=packing, group=group)
    stored = SCHEMES[name].encode(q)
    assert (stored["q_scale"] < 0).all()
    assert np.array_equal(SCHEMES[name].decode(stored).dequantize(), q.dequantize())


@pytest.mark.parametrize("zero", [127, 128])
def test_symmetric_eight_bits_land_exactly(zero):
    codes = np.random.default_rng(2).integers(0, 255, (8, 128), np.uint8) + np.uint8(zero == 128)
    codes[0, 0] = 0  # -128 where the zero is 128
    scale = np.full((8, 1), 0.01, np.float16)
    q = QTensor(pack(codes, PLAIN), scale, constant_zero(zero, (8, 1), PLAIN), (1, 128))
    stored = SCHEMES["q8f16_1"].encode(q)
    assert stored["q_weight"].shape == (8, 32)
    assert np.array_equal(SCHEMES["q8f16_1"].decode(stored).dequantize(), q.dequantize())


def test_zero_in_the_middle_passes_the_words_through():
    q = source(7)
    stored = SCHEMES["q4f16_1"].encode(q)
    assert np.array_equal(stored["q_weight"], q.codes.words)
    assert np.array_equal(stored["q_scale"], q.scale)


def test_a_narrow_asymmetric_group_lands_exactly():
    q = source(3, high=12)
    assert np.array_equal(
        SCHEMES["q4f16_1"].decode(SCHEMES["q4f16_1"].encode(q)).dequantize(), q.dequantize()
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda q: replace(q, zero=constant_zero(3, q.grid, PLAIN)), "from -3 to 12 in one group"),
        (lambda q: source(8, group=16), "groups of 16 do not divide into groups of 32"),
        (lambda q: replace(q, codes=pack(q.codes.unpack(), PLAIN)), "uint8, the scheme's uint4"),
        (lambda q: replace(q, perm=np.arange(128)), "activation order"),
        (lambda q: replace(q, input_scale=np.float32(1)), "activation scale"),
        (lambda q: replace(q, scale=q.scale.astype(np.float32) * 1e8), "normal range"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(change, reason):
    q = source(8)
    q.codes.words[:] |= np.uint32(0xF0)
    with pytest.raises(CannotExpress, match=rf"model\.down.*{reason}"):
        SCHEMES["q4f16_1"].encode(change(q), "model.down")


def test_a_zero_beyond_all_codes_does_not_wrap():
    far = PackedArray(np.full((8, 4), 65535, np.uint16), PLAIN, (8, 4))
    with pytest.raises(CannotExpress, match="in one group"):
        SCHEMES["q4f16_1"].encode(replace(source(8, high=6), zero=far))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7e4])
def test_unusable_weights_are_refused(value):
    w = np.ones((4, 64), np.float32)
    w[1, 3] = value
    with pytest.raises(CannotExpress, match="infinite, NaN or too large for float16"):
        SCHEMES["q4f16_1"].quantize(w)


def test_three_bits_leave_the_top_bits_zero():
    stored = SCHEMES["q3f16_1"].encode(SCHEMES["q3f16_1"].quantize(weights()))
    assert not (stored["q_weight"] >> 30).any()
    assert Packing(3, "k").per_word == 10

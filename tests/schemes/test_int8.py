"""W8A16: every integer source of up to 8 bits lands exactly."""

from dataclasses import replace

import numpy as np
import pytest

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import AWQ, PLAIN, PackedArray, pack
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.schemes.int8 import ROWS

N, K = 16, 256


def source(block=(1, 128), zero_high=256, bits=8):
    rng = np.random.default_rng(0)
    grid = (-(-N // block[0]), -(-K // block[1]))
    codes = rng.integers(0, 2**bits, (N, K), np.uint8)
    packed = pack(codes, AWQ if bits == 4 else PLAIN)
    zero = rng.integers(0, zero_high, grid).astype(np.uint16)
    scale = rng.uniform(0.001, 0.01, grid).astype(np.float16)
    return QTensor(packed, scale, PackedArray(zero, PLAIN, grid), block)


@pytest.mark.parametrize("name", ["q8f16_1_g32", "q8f16_1_g128"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [(1, 128), (1, K), (N, K), (4, 128)])
def test_any_coarser_block_lands_exactly(name, bits, block):
    q = source(block, zero_high=257, bits=bits)
    scheme = SCHEMES[name]
    stored = scheme.encode(q)
    assert {s: (a.shape, a.dtype.name) for s, a in stored.items()} == {
        s: (spec.shape, spec.dtype) for s, spec in scheme.params(N, K).items()
    }
    assert np.array_equal(scheme.decode(stored).dequantize(), q.dequantize())


def test_no_zero_means_zero():
    q = replace(source(), zero=None)
    assert np.array_equal(
        SCHEMES["q8f16_1_g32"].decode(SCHEMES["q8f16_1_g32"].encode(q)).dequantize(), q.dequantize()
    )


def test_per_channel_codes_pass_through():
    q = source((1, K))
    assert SCHEMES["q8f16_1_gk"].encode(q)["q_weight"] is q.codes.words


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_quantizing_is_within_half_a_step(row):
    w = np.random.default_rng(2).normal(size=(N, K)).astype(np.float32)
    q = row.quantize(w)
    step = np.repeat(q.scale.astype(np.float32), q.block[1], axis=1)
    # The largest weight may exceed 127 steps by the rounding of the scale.
    assert np.all(np.abs(q.dequantize() - w) <= step * 0.57)
    assert np.mean(np.abs(q.dequantize() - w) <= step * 0.505) > 0.99


def test_refusals():
    with pytest.raises(CannotExpress, match="do not divide"):
        SCHEMES["q8f16_1_gk"].encode(source())
    with pytest.raises(CannotExpress, match="activation order"):
        SCHEMES["q8f16_1_g32"].encode(replace(source(), perm=np.arange(K)))

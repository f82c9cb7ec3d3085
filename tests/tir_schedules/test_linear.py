"""Linear layers by the CPU rules against float64 numpy.

Errors are the largest difference over the largest value. What is left with float32 output is the
kernel's own error; with float16 or bfloat16 output the rounding of the result itself.
"""

from __future__ import annotations

import pytest
from linear_functions import awq, dense, group4

ROUNDING = {"float32": 3e-6, "float16": 6e-4, "bfloat16": 5e-3}
INT16_ROWS = 5e-5  # x as 16-bit integers per group: the AWQ decode kernel's own error


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("m", [1, 3, 17, 70])
@pytest.mark.parametrize(("n", "k"), [(72, 264), (256, 768)])
def test_dense(dtype: str, m: int, n: int, k: int) -> None:
    assert dense(m, n, k, dtype).error() < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dense_decode_is_static(dtype: str) -> None:
    assert dense(1, 200, 264, dtype, static=True).error() < ROUNDING[dtype]


@pytest.mark.parametrize(("m", "n", "k"), [(1, 41, 77), (5, 7, 9), (33, 41, 77), (6, 1, 1)])
def test_dense_odd_shapes(m: int, n: int, k: int) -> None:
    assert dense(m, n, k, "float32").error() < ROUNDING["float32"]


@pytest.mark.parametrize("m", [1, 19])
def test_dense_kn(m: int) -> None:
    assert dense(m, 72, 200, "float16", nk=False).error() < ROUNDING["float16"]


def test_lm_head_keeps_float32_logits() -> None:
    assert dense(2, 4096, 256, "float16", out_dtype="float32").error() < ROUNDING["float32"]


@pytest.mark.parametrize("m", range(1, 18))
def test_awq_every_small_row_count(m: int) -> None:
    assert awq(m, 136, 256, 64, out_dtype="float32").error() < INT16_ROWS


@pytest.mark.parametrize("group", [32, 64, 128, 384])
@pytest.mark.parametrize("m", [1, 33])
def test_awq_groups(m: int, group: int) -> None:
    assert awq(m, 264, 384, group, static=m == 1, out_dtype="float32").error() < INT16_ROWS


@pytest.mark.parametrize("group", [48, 272])  # an odd number of 16; longer than a block besides
@pytest.mark.parametrize("m", [1, 5, 40])
def test_awq_group_of_no_power_of_two(m: int, group: int) -> None:
    assert awq(m, 136, 2 * group, group, out_dtype="float32").error() < INT16_ROWS


@pytest.mark.parametrize(("n", "k"), [(8, 128), (40, 128), (256, 768), (1032, 1152)])
@pytest.mark.parametrize("static", [True, False])
def test_awq_decode_shapes(n: int, k: int, static: bool) -> None:
    assert awq(1, n, k, 128, static=static, out_dtype="float32").error() < INT16_ROWS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_awq_other_float_types(dtype: str) -> None:
    assert awq(4, 256, 256, 128, dtype).error() < max(ROUNDING[dtype], INT16_ROWS)


@pytest.mark.parametrize("m", [1, 2, 5, 16, 17, 40])
@pytest.mark.parametrize(("n", "k", "group"), [(128, 128, 32), (200, 384, 32), (132, 256, 64)])
@pytest.mark.parametrize("nk", [True, False])
def test_group4(m: int, n: int, k: int, group: int, nk: bool) -> None:
    assert group4(m, n, k, group, nk, out_dtype="float32").error() < INT16_ROWS


@pytest.mark.parametrize(("n", "k"), [(256, 512), (36, 96)])
def test_group4_decode_is_static(n: int, k: int) -> None:
    assert group4(1, n, k, static=True, out_dtype="float32").error() < INT16_ROWS


@pytest.mark.parametrize("epilogue", ["bias", "residual"])
@pytest.mark.parametrize("m", [1, 9, 40])
def test_epilogues_are_fused(epilogue: str, m: int) -> None:
    assert awq(m, 256, 256, 128, epilogue=epilogue).error() < ROUNDING["float16"]
    assert dense(m, 72, 64, "float16", epilogue=epilogue).error() < ROUNDING["float16"]


def test_awq_of_zero_input_is_zero() -> None:
    layer = awq(1, 128, 128, 128, static=True)
    layer.inputs[0][:] = 0
    assert not layer.run().any()


def test_awq_outlier_in_the_input() -> None:
    """One channel 1000 times the rest: int16 steps grow, yet stay below float16's result."""
    layer = awq(1, 256, 256, 128, static=True, out_dtype="float32")
    plain = layer.run()
    layer.inputs[0][0, 0, 5] = 1000.0
    assert abs(layer.run() - plain).max() > 0
    layer.expected = _expected_again(layer)
    assert layer.error() < ROUNDING["float16"] / 2


def _expected_again(layer):  # type: ignore[no-untyped-def]
    import numpy as np
    from linear_functions import AWQ_SHIFTS, _unpack

    x, words, zeros, scales = layer.inputs
    group = words.shape[0] // zeros.shape[0]
    zero = np.repeat(_unpack(zeros, AWQ_SHIFTS), group, axis=0)
    scale = np.repeat(scales.astype(np.float64), group, axis=0)
    return x.astype(np.float64) @ ((_unpack(words, AWQ_SHIFTS) - zero) * scale)

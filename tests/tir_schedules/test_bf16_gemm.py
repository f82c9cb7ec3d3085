"""The bfloat16 prefill kernel (vdpbf16ps) against float64 numpy, and what the rule makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from bf16_reference import rounded_group4
from linear_functions import TARGET, build, dense, group4
from tvm import tirx

from tir_schedules.cpu.linear import Linear
from tir_schedules.cpu.vector_unit import VectorUnit

BFLOAT16 = 5e-3  # rounding of the result
EXACT = 3e-6  # of float32 sums of exact products

here = pytest.mark.skipif(not VectorUnit.of(TARGET).bf16, reason="this CPU has no avx512_bf16")


def after(func: tirx.PrimFunc) -> str:
    schedule = Linear().apply(func, TARGET, False)
    assert schedule is not None
    return schedule.mod["main"].script()


@here
def test_before_and_after() -> None:
    func = dense(40, 256, 256, "bfloat16").func
    assert "bf16_dot" not in func.script()
    script = after(func)
    assert script.count('"bf16_dot"') == 6 * 4  # one register tile
    assert script.count("T.parallel") == 3  # decode; rows of x, then the blocks of the product
    assert "float32x16" in script
    assert "vdpbf16ps" in build(func, TARGET).mod.inspect_source("asm")


@here
def test_other_types_keep_their_kernels() -> None:
    assert "bf16_dot" not in after(dense(40, 256, 256, "float16").func)
    assert "bf16_dot" not in after(dense(40, 256, 256, "float32").func)
    assert "bf16_dot" not in after(dense(1, 256, 256, "bfloat16", static=True).func)


@here
@pytest.mark.parametrize("m", [17, 32, 70, 529, 600])
@pytest.mark.parametrize(("n", "k"), [(72, 264), (136, 1056)])
def test_sums_are_float32(m: int, n: int, k: int) -> None:
    layer = dense(m, n, k, "bfloat16", out_dtype="float32")
    assert "bf16_dot" in after(layer.func)
    assert layer.error() < EXACT


@here
@pytest.mark.parametrize(("m", "n", "k"), [(33, 41, 77), (17, 1, 1)])
def test_odd_shapes(m: int, n: int, k: int) -> None:
    assert dense(m, n, k, "bfloat16", out_dtype="float32").error() < EXACT


@here
@pytest.mark.parametrize(
    ("static", "epilogue"), [(True, "none"), (False, "bias"), (True, "residual")]
)
def test_epilogues_are_fused(static: bool, epilogue: str) -> None:
    layer = dense(45, 72, 64, "bfloat16", static=static, epilogue=epilogue)
    assert layer.error() < BFLOAT16


@here
def test_kn() -> None:
    layer = dense(19, 136, 77, "bfloat16", nk=False, out_dtype="float32")
    assert "bf16_dot" in after(layer.func)
    assert layer.error() < EXACT


@here
@pytest.mark.parametrize(("n", "nk"), [(200, True), (132, False)])
def test_four_bits_of_a_bfloat16_model(n: int, nk: bool) -> None:
    """W as the model's own expression makes it: a bfloat16."""
    layer = group4(40, n, 640, 32, nk, "bfloat16", out_dtype="float32")
    assert "bf16_dot" in after(layer.func)
    layer.expected = rounded_group4(layer, nk)
    assert layer.error() < EXACT


@here
def test_denormals_count_as_zero() -> None:
    layer = dense(20, 72, 264, "bfloat16", out_dtype="float32")
    layer.inputs[0][:] = np.float32(2.0**-130)
    assert not layer.run().any()


@here
def test_infinity_stays_in_its_row() -> None:
    """Neither the zeros beside k nor the rows beside m make NaN elsewhere."""
    layer = dense(20, 41, 77, "bfloat16", out_dtype="float32")
    layer.inputs[0][0, 19, 76] = np.inf
    got = layer.run()
    assert np.isfinite(got[0, :19]).all()
    assert not np.isfinite(got[0, 19]).any()

"""What the rules make of a function: before and after, and what they leave alone."""

from __future__ import annotations

import pytest
import tvm
from linear_functions import TARGET, awq, dense
from tvm import te, tirx

from tir_schedules import RULES
from tir_schedules.contraction import find
from tir_schedules.cpu.awq import AwqWeight
from tir_schedules.cpu.fallback import Fallback
from tir_schedules.cpu.linear import Linear


def after(func: tirx.PrimFunc) -> str:
    schedule = Linear().apply(func, TARGET, False)
    assert schedule is not None
    new = schedule.mod["main"]
    assert [p.name for p in new.params] == [p.name for p in func.params]
    return new.script()


def test_awq_decode_before_and_after() -> None:
    func = awq(1, 1024, 1024, 128, static=True, epilogue="residual").func
    before = func.script()
    assert before.count("\n    for ") == 4  # dequantize, matmul, cast, add, each a serial nest
    assert "T.parallel" not in before
    script = after(func)
    assert script.count("T.parallel") == 1  # a stretch of k for each task; their sum is short
    assert "dequantize[" not in script  # the float weight is never written to memory
    products = script.count("pmadd") + script.count("vpdpbusd")
    # eight rows of k, eight nibbles each: four pairs, or two quads with two digits of x
    assert products == 4 * 8


def test_prefill_before_and_after() -> None:
    func = dense(40, 256, 256, "float16").func
    assert "llvm.fma" not in func.script()
    script = after(func)
    assert script.count("T.parallel") == 2  # few rows and many rows, chosen at run time
    assert script.count("llvm.fma") == 4 * 4 + 6 * 4  # one register tile of each kernel


def test_awq_is_recognised_with_its_nibble_order() -> None:
    found = find(awq(3, 64, 128, 32).func)
    assert found is not None
    weight = AwqWeight.match(found)
    assert weight is not None
    assert (weight.n, weight.k, weight.group) == (64, 128, 32)
    assert weight.shifts == (0, 16, 4, 20, 8, 24, 12, 28)


def test_batched_matmul_is_not_a_linear_layer() -> None:
    a, b = te.placeholder((4, 8, 16), name="a"), te.placeholder((4, 8, 16), name="b")
    k = te.reduce_axis((0, 16))
    out = te.compute((4, 8, 8), lambda h, i, j: te.sum(a[h, i, k] * b[h, j, k], axis=k))
    assert find(te.create_prim_func([a, b, out])) is None


def test_sum_is_not_a_linear_layer() -> None:
    a = te.placeholder((8, 16), name="a")
    k = te.reduce_axis((0, 16))
    out = te.compute((8,), lambda i: te.sum(a[i, k], axis=k))
    assert find(te.create_prim_func([a, out])) is None


@pytest.mark.parametrize("kind", ["llvm", "cuda"])
def test_rules_are_ordered_with_fallback_last(kind: str) -> None:
    options = {"kind": kind, "arch": "sm_80"} if kind == "cuda" else {"kind": kind}
    rules = RULES(tvm.target.Target(options))
    assert type(rules[-1]).__name__ == "Fallback"
    assert not any(isinstance(r, Fallback) for r in rules[:-1])


def test_fallback_makes_elementwise_parallel_and_vector() -> None:
    m = te.var("m", "int64")
    a = te.placeholder((m, 256), "float16", "a")
    out = te.compute((m, 256), lambda i, j: a[i, j] * tirx.const(2, "float16"))
    func = te.create_prim_func([a, out])
    assert "T.parallel" not in func.script()
    schedule = Fallback().apply(func, TARGET, False)
    assert schedule is not None
    script = schedule.mod["main"].script()
    assert "T.parallel" in script
    assert "T.vectorized" in script

"""Row-by-row functions (norms, activations, softmax, copies): schedule and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from attention_reference import NUMPY, TARGET, Array, _tensor
from tvm import te, tirx
from tvm.script import tirx as T

from tir_schedules.cpu.rows import Rows
from tir_schedules.cpu.vector_math import cos_sin, exp, sigmoid, tanh

RELATIVE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def run(func: tirx.PrimFunc, *arrays: Array) -> None:
    """Schedule, compile and call; the last array receives the result."""
    schedule = Rows().apply(func, TARGET, False)
    assert schedule is not None
    kernel = tvm.compile(schedule.mod, target=TARGET)["main"]
    tensors = [_tensor(a) for a in arrays]
    kernel(*tensors)
    arrays[-1][...] = tensors[-1].numpy().view(arrays[-1].dtype)


def f32(x: Any) -> Any:
    return x.astype("float32")


def rms_norm(n: int, dtype: str) -> tirx.PrimFunc:
    rows, k = te.var("rows", "int64"), te.reduce_axis((0, n), "k")
    x, w = te.placeholder((1, rows, n), dtype, "x"), te.placeholder((n,), dtype, "w")
    total = te.compute((1, rows), lambda a, b: te.sum(f32(x[a, b, k]) * f32(x[a, b, k]), axis=k))
    y = te.compute(
        (1, rows, n),
        lambda a, b, c: (
            f32(x[a, b, c]) * tirx.rsqrt(total[a, b] / float(n) + 1e-5) * f32(w[c])
        ).astype(dtype),
    )
    return te.create_prim_func([x, w, y])


def gated_silu(n: int, dtype: str) -> tirx.PrimFunc:
    rows = te.var("rows", "int64")
    x = te.placeholder((rows, 2 * n), dtype, "x")

    def value(b: tirx.Var, c: tirx.Var) -> Any:
        gate = f32(x[b, c])
        return (gate * tirx.sigmoid(gate) * f32(x[b, c + n])).astype(dtype)

    return te.create_prim_func([x, te.compute((rows, n), value)])


def softmax(n: int) -> tirx.PrimFunc:
    rows, k, j = te.var("rows", "int64"), te.reduce_axis((0, n), "k"), te.reduce_axis((0, n), "j")
    x = te.placeholder((rows, 1, n), "float32", "x")
    top = te.compute((rows,), lambda b: te.max(x[b, 0, k], axis=k))
    total = te.compute((rows,), lambda b: te.sum(tirx.exp(x[b, 0, j] - top[b]), axis=j))
    y = te.compute((rows, 1, n), lambda b, _, c: tirx.exp(x[b, 0, c] - top[b]) / total[b])
    return te.create_prim_func([x, y])


def take(n: int) -> tirx.PrimFunc:
    rows, count = te.var("rows", "int64"), te.var("count", "int64")
    table = te.placeholder((rows, n), "float16", "table")
    ids = te.placeholder((count,), "int32", "ids")
    return te.create_prim_func([table, ids, te.compute((count, n), lambda i, j: table[ids[i], j])])


@pytest.mark.parametrize("dtype", list(NUMPY))
@pytest.mark.parametrize(("rows", "n"), [(1, 256), (3, 96), (130, 256), (2, 77)])
def test_rms_norm(rows: int, n: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(NUMPY[dtype]) for s in ((1, rows, n), (n,)))
    y = np.zeros_like(x)
    run(rms_norm(n, dtype), x, w, y)
    x, w = x.astype(np.float64), w.astype(np.float64)
    want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w
    assert (abs(y.astype(np.float64) - want) <= RELATIVE[dtype] * (abs(want) + 1e-3)).all()


@pytest.mark.parametrize("dtype", list(NUMPY))
@pytest.mark.parametrize("rows", [1, 70])
def test_gated_silu(rows: int, dtype: str) -> None:
    x = (np.random.default_rng(1).standard_normal((rows, 768)) * 5).astype(NUMPY[dtype])
    y = np.zeros((rows, 384), x.dtype)
    run(gated_silu(384, dtype), x, y)
    gate, up = np.split(x.astype(np.float64), 2, -1)
    want = gate / (1 + np.exp(-gate)) * up
    assert (abs(y.astype(np.float64) - want) <= RELATIVE[dtype] * (abs(want) + 1e-4)).all()


@pytest.mark.parametrize("rows", [1, 9])
def test_softmax(rows: int) -> None:
    x = (np.random.default_rng(2).standard_normal((rows, 1, 4096)) * 8).astype(np.float32)
    y = np.zeros_like(x)
    run(softmax(4096), x, y)
    weight = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    want = weight / weight.sum(-1, keepdims=True)
    # x - max is rounded: up to 64 * 2**-24 of relative error
    assert (abs(y - want) <= 5e-6 * want + 1e-37).all()


def test_take_copies_rows() -> None:
    rng = np.random.default_rng(3)
    table, ids = rng.standard_normal((50, 96)).astype(np.float16), rng.integers(0, 50, 7, np.int32)
    y = np.zeros((7, 96), np.float16)
    run(take(96), table, ids, y)
    assert (y == table[ids]).all()


def test_other_functions_are_left_to_other_rules() -> None:
    n = te.var("n", "int64")
    x = te.placeholder((4, n), "float32", "x")
    dynamic = te.create_prim_func([x, te.compute((4, n), lambda i, j: x[i, j] + 1.0)])
    k = te.reduce_axis((0, 8), "k")
    y = te.placeholder((4, 8), "float32", "y")
    reduces = te.create_prim_func([y, te.compute((4,), lambda i: te.sum(y[i, k], axis=k))])
    assert Rows().apply(dynamic, TARGET, False) is None
    assert Rows().apply(reduces, TARGET, False) is None


@T.prim_func(s_tir=True)
def before(x: T.Buffer((64, 256), "float16"), y: T.Buffer((64, 128), "float16")) -> None:
    T.func_attr({"tirx.noalias": True})
    for i, j in T.grid(64, 128):
        with T.sblock("y"):
            v, w = T.axis.remap("SS", [i, j])
            y[v, w] = x[v, w] * x[v, w + 128]


@T.prim_func(s_tir=True)
def after(x: T.Buffer((64, 256), "float16"), y: T.Buffer((64, 128), "float16")) -> None:
    T.func_attr({"tirx.noalias": True})
    for i in T.serial(64):
        for c in T.serial(4):
            for lane in T.vectorized(32):
                with T.sblock("y"):
                    v = T.axis.spatial(64, i)
                    w = T.axis.spatial(128, c * 32 + lane)
                    T.reads(x[v, w : w + 129])
                    T.writes(y[v, w])
                    y[v, w] = x[v, w] * x[v, w + 128]


def test_before_and_after() -> None:
    """Little work: vectors, but no parallel loop."""
    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mattr": ["+avx512f"]}
    )
    got = Rows().apply(before.with_attr("global_symbol", "main"), target, False)
    tvm.ir.assert_structural_equal(got.mod["main"], after.with_attr("global_symbol", "main"))


def pointwise(function: Callable[[Any], Any], x: Array) -> Array:
    n = len(x)
    a = te.placeholder((1, n), "float32")
    func = te.create_prim_func([a, te.compute((1, n), lambda i, j: function(a[i, j]))])
    y = np.zeros((1, n), np.float32)
    run(func, x[None].astype(np.float32), y)
    return y[0]


def test_polynomials() -> None:
    x = np.linspace(-80, 80, 4096).astype(np.float32)
    exact = x.astype(np.float64)
    assert (abs(pointwise(exp, x) / np.exp(exact) - 1) < 3e-7).all()
    assert abs(pointwise(sigmoid, x) - 1 / (1 + np.exp(-exact))).max() < 2e-7
    assert abs(pointwise(tanh, x) - np.tanh(exact)).max() < 3e-7
    assert (pointwise(exp, np.full(64, -1e9)) == 0).all()
    far = np.linspace(-1e5, 1e5, 4096).astype(np.float32)
    for i, function in enumerate((np.cos, np.sin)):
        got = pointwise(lambda v, i=i: cos_sin(v)[i], far)
        assert abs(got - function(far.astype(np.float64))).max() < 3e-7

"""Fused linear layers as the graph compiler makes them, with their float64 reference in numpy.

The functions are written here with TVM's tensor expressions, block by block in the same order as
operator fusion leaves them: dequantize, (transpose,) matmul with float32 sum, cast, epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import tvm
from tvm import te, tirx
from tvm.s_tir import dlight

from mlc_bridge.compiler.target import host_target
from tir_schedules import RULES

TARGET = host_target()
AWQ_SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], dtype=np.uint32)


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


_BUILT: dict[tuple[str, str], tvm.runtime.Executable] = {}


def build(func: tirx.PrimFunc, target: tvm.target.Target) -> tvm.runtime.Executable:
    """Schedule by the rules and build; equal functions (any number of rows) are built once."""
    key = (func.script(), str(target))
    if key not in _BUILT:
        module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        with target:
            module = dlight.ApplyDefaultSchedule(*RULES(target))(module)
        _BUILT[key] = tvm.compile(module, target=target)
    return _BUILT[key]


@dataclass
class Layer:
    """A fused function, its inputs and what it should give in float64."""

    func: tirx.PrimFunc
    inputs: list[np.ndarray]
    expected: np.ndarray
    out_dtype: str

    def run(self, target: tvm.target.Target = TARGET) -> np.ndarray:
        """Schedule by the rules, build for the target and run."""
        library = build(self.func, target)
        out = np.zeros(self.expected.shape, numpy_dtype(self.out_dtype))
        arguments = [tvm.runtime.tensor(a) for a in [*self.inputs, out]]
        library["main"](*arguments)
        return arguments[-1].numpy().astype(np.float64)

    def error(self, target: tvm.target.Target = TARGET) -> float:
        """Largest difference over largest value."""
        got = self.run(target)
        return float(np.abs(got - self.expected).max() / np.abs(self.expected).max())


def dense(
    m: int,
    n: int,
    k: int,
    dtype: str,
    nk: bool = True,
    static: bool = False,
    epilogue: str = "none",
    out_dtype: str | None = None,
    stored: str | None = None,
) -> Layer:
    """`x @ W^T` (or `x @ W`) with a float32 sum; W is `stored` in another type and widened."""
    rng = np.random.default_rng(m * n + k)
    x, w = _floats(rng, (1, m, k), dtype), _floats(rng, (n, k) if nk else (k, n), stored or dtype)
    place = te.placeholder(_int64(w.shape), stored or dtype, "w")
    matrix = w.astype(np.float64)
    return _layer(
        m, n, k, dtype, out_dtype or dtype, static, epilogue, rng, x, [w], [place],
        lambda j, i: (place[j, i] if nk else place[i, j]).astype(dtype),
        matrix if nk else matrix.T,
    )  # fmt: skip


def awq(
    m: int,
    n: int,
    k: int,
    group: int,
    dtype: str = "float16",
    static: bool = False,
    epilogue: str = "none",
    out_dtype: str | None = None,
    plain: bool = False,
) -> Layer:
    """AutoAWQ words: `W[n, k] = (q[k, n] - z[k // group, n]) * s[k // group, n]`.

    Where `plain`, nibble i of a word holds channel i; else in AutoAWQ's order.
    """
    rng = np.random.default_rng(m * n + k + group)
    x = _floats(rng, (1, m, k), dtype)
    words = rng.integers(0, 2**32, (k, n // 8), dtype=np.uint32)
    zeros = rng.integers(0, 2**32, (k // group, n // 8), dtype=np.uint32)
    scales = ((rng.random((k // group, n)) + 0.1) * 0.01).astype(numpy_dtype(dtype))
    names = ("qweight", "qzeros", "scales")
    arrays = [words, zeros, scales]
    places = [
        te.placeholder(_int64(a.shape), str(a.dtype), i) for a, i in zip(arrays, names, strict=True)
    ]

    def unpack(place: te.Tensor, row: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
        shift = j % 8 * 4 if plain else j % 2 * 16 + j % 8 // 2 * 4
        return ((place[row, j // 8] >> shift.astype("uint32")) & tirx.const(15, "uint32")).astype(
            dtype
        )

    weight = te.compute(
        _int64((n, k)),
        lambda j, i: (
            (unpack(places[0], i, j) - unpack(places[1], i // group, j)) * places[2][i // group, j]
        ),
        name="dequantize",
    )
    shifts = np.sort(AWQ_SHIFTS) if plain else AWQ_SHIFTS
    code, zero = _unpack(words, shifts), np.repeat(_unpack(zeros, shifts), group, axis=0)
    matrix = (code - zero) * np.repeat(scales.astype(np.float64), group, axis=0)
    return _layer(
        m, n, k, dtype, out_dtype or dtype, static, epilogue, rng, x, arrays, places,
        lambda j, i: weight[j, i], matrix.T,
    )  # fmt: skip


def group4(
    m: int,
    n: int,
    k: int,
    group: int = 32,
    nk: bool = True,
    dtype: str = "float16",
    static: bool = False,
    out_dtype: str | None = None,
) -> Layer:
    """MLC's q4f16_1 (NK) or q4f16_0 (KN): `W[n, k] = (q - 7) * s[n, k // group]`."""
    rng = np.random.default_rng(m * n + k + group)
    x = _floats(rng, (1, m, k), dtype)
    words = rng.integers(0, 2**32, (n, k // 8), dtype=np.uint32)
    scales = ((rng.random((n, k // group)) + 0.1) * 0.01).astype(numpy_dtype(dtype))
    nibbles = np.arange(0, 32, 4, dtype=np.uint32)
    codes = ((words[:, :, None] >> nibbles) & 15).reshape(n, k).astype(np.float64)
    matrix = (codes - 7) * np.repeat(scales.astype(np.float64), group, axis=1)
    arrays = [np.ascontiguousarray(a if nk else a.T) for a in (words, scales)]
    places = [te.placeholder(_int64(a.shape), str(a.dtype), f"w{i}") for i, a in enumerate(arrays)]

    def at(place: te.Tensor, j: tirx.Expr, i: tirx.Expr) -> tirx.Expr:
        return place[j, i] if nk else place[i, j]

    def code(j: tirx.Expr, i: tirx.Expr) -> tirx.Expr:
        word = at(places[0], j, i // 8) >> (i % 8 * 4).astype("uint32")
        return (word & tirx.const(15, "uint32")).astype(dtype)

    weight = te.compute(
        _int64((n, k)),
        lambda j, i: (code(j, i) - tirx.const(7, dtype)) * at(places[1], j, i // group),
        name="dequantize",
    )
    return _layer(
        m, n, k, dtype, out_dtype or dtype, static, "none", rng, x, arrays, places,
        lambda j, i: weight[j, i], matrix,
    )  # fmt: skip


def _layer(
    m, n, k, dtype, out_dtype, static, epilogue, rng, x, arrays, places, weight, matrix
) -> Layer:  # fmt: skip
    rows = tirx.IntImm("int64", m) if static else te.var("m", "int64")
    one, wide, deep = _int64((1, n, k))
    shape = (one, rows, wide)
    place_x = te.placeholder((one, rows, deep), dtype, "x")
    axis = te.reduce_axis((0, deep), "k")
    out = te.compute(
        shape,
        lambda a, r, j: te.sum(
            place_x[a, r, axis].astype("float32") * weight(j, axis).astype("float32"), axis=axis
        ),
        name="NT_matmul",
    )
    expected = x.astype(np.float64) @ matrix.T
    if out_dtype != "float32":
        total = out
        out = te.compute(shape, lambda *i: total[i].astype(out_dtype), name="cast")
    inputs, all_places = [x, *arrays], [place_x, *places]
    if epilogue != "none":
        extra = _floats(rng, (n,) if epilogue == "bias" else (1, m, n), out_dtype)
        place = te.placeholder((wide,) if epilogue == "bias" else shape, out_dtype, "extra")
        before = out
        point = (
            (lambda a, r, j: place[j]) if epilogue == "bias" else (lambda a, r, j: place[a, r, j])
        )
        out = te.compute(shape, lambda *i: before[i] + point(*i), name="T_add")
        inputs.append(extra)
        all_places.append(place)
        expected = expected + extra.astype(np.float64)
    return Layer(te.create_prim_func([*all_places, out]), inputs, expected, out_dtype)


def _int64(shape: tuple[int, ...]) -> tuple[tirx.IntImm, ...]:
    """The integer type that relax gives every shape."""
    return tuple(tirx.IntImm("int64", extent) for extent in shape)


def _floats(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(dtype))


def _unpack(words: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    return ((words[:, :, None] >> shifts) & 15).reshape(words.shape[0], -1).astype(np.float64)

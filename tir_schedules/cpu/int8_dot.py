"""Linear layer of whole numbers: int8 rows of x times uint8 rows of W, summed exactly in int32.

    for every stretch of columns of the output, in parallel:
        for every tile of rows of x:                                                 L1
            for every WIDTH columns of the stretch:                                  L2
                acc[row, column] += quads of W[n, k ...] * quads of x[r, k ...]      registers
                out = finish(sum of the lanes of acc)

Both lie along k, so nothing is packed. Lane l of an
accumulator sums the columns 4l ... 4l + 3 of every stretch; vpdpbusd does that in one instruction,
other units with what they have (``simd.dot_bytes``), to the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .vector_unit import VectorUnit

WIDTH = 4  # columns of the output at a time
ROWS = 4  # of x in one register tile
CACHED = 1 << 17  # bytes of W that stay in L2 while all rows go by
QUAD = 4  # bytes in an int32 lane


@dataclass(frozen=True)
class ByteWeight:
    """`W[n, k]` uint8, k contiguous, under int8 rows of x."""

    name: ClassVar[str] = "bytes times bytes"
    codes: ir.Var

    @staticmethod
    def match(c: Contraction) -> ByteWeight | None:
        """Only of whole numbers: float kernels would round their sums."""
        w = c.weight
        if c.x_dtype != "int8" or not isinstance(w, TensorLoad) or str(w.ty) != "uint8":
            return None
        at = list(w.indices)
        natural = len(at) == 2 and at[0].same_as(c.n_var) and at[1].same_as(c.k_var)
        return ByteWeight(w.source) if natural else None

    def against(self, unit: VectorUnit) -> tuple[str, ...]:
        """Every unit can."""
        return ()


def emit_int8_dot(c: Contraction, weight: ByteWeight, unit: VectorUnit, one_row: bool) -> None:
    """Emit the layer at the builder's current place, for one row of x or for any number."""
    groups, tile = -(-c.n // WIDTH), 1 if one_row else ROWS
    share = -(-groups // unit.parallel_tasks(groups, c.n * c.k))
    if not one_row:
        share = min(share, max(1, CACHED // (WIDTH * c.k)))
    tasks = -(-groups // share)
    with simd.loop(tasks > 1, c.const(tasks)) as task:
        first = T.bind(task * share)
        count = T.bind(tirx.min(c.const(groups) - first, c.const(share)))
        with T.serial(0, simd.ceil_div(c.rows, tile)) as t, T.serial(0, count) as g:
            _tile(c, weight, unit, T.bind((first + g) * WIDTH), T.bind(t * tile), tile)


def _tile(
    c: Contraction, weight: ByteWeight, unit: VectorUnit, n0: ir.Expr, r0: ir.Expr, tile: int
) -> None:
    """`tile` rows times WIDTH columns; what lies outside repeats the last and is not stored."""
    lanes, step = unit.lanes, unit.lanes * QUAD
    columns = [T.bind(tirx.min(n0 + j, c.const(c.n - 1))) for j in range(WIDTH)]
    rows = [T.bind(tirx.min(r0 + i, c.rows - 1)) for i in range(tile)]
    acc = simd.Registers(tile, WIDTH, lanes, "int32")
    acc.clear()
    with T.serial(0, c.const(c.k // step)) as s:
        k = T.bind(s * step)
        xs = [_bytes(c, r, k, lanes) for r in rows]
        for j, n in enumerate(columns):
            codes = simd.load(weight.codes, [n, k], step)
            w = T.bind(tirx.reinterpret(f"int32x{lanes}", codes))
            for i in range(tile):
                acc.set(i, j, simd.dot_bytes(acc.get(i, j), w, xs[i], unit))
    for i in range(tile):
        total = simd.lane_sums([acc.get(i, j) for j in range(WIDTH)], lanes)
        _store(c, weight, rows[i], r0 + i, columns, n0, total, c.k // step * step)


def _bytes(c: Contraction, r: ir.Expr, k: ir.Expr, lanes: int) -> ir.Expr:
    """x[r, k ...] as int32 lanes of four."""
    load = c.x(r, k)
    assert isinstance(load, TensorLoad)
    codes = simd.load(load.source, list(load.indices), lanes * QUAD)
    return T.bind(tirx.reinterpret(f"int32x{lanes}", codes))


def _store(
    c: Contraction, weight: ByteWeight, row: ir.Expr, wanted: ir.Expr, columns: list[ir.Expr],
    n0: ir.Expr, total: ir.Expr, done: int,
) -> None:  # fmt: skip
    """Add the columns of k that fill no vector, then store what lies inside the output."""
    sums = T.alloc_buffer((WIDTH,), "int32")
    simd.store(sums, [tirx.IntImm("int32", 0)], total, WIDTH)
    for j, n in enumerate(columns) if done < c.k else ():
        with T.serial(0, c.const(c.k - done)) as i:
            k = c.const(done) + i
            code = tirx.BufferLoad(weight.codes, [n, k]).astype("int32")
            more = tirx.BufferLoad(sums, [j]) + code * c.x(row, k).astype("int32")
            T.buffer_store(sums, more, [j])
    with T.If(wanted < c.rows), T.Then():
        if c.n % WIDTH == 0:
            with T.vectorized(0, c.const(WIDTH)) as j:
                c.put(row, n0 + j, tirx.BufferLoad(sums, [j]))
            return
        for j in range(WIDTH):
            with T.If(n0 + j < c.n), T.Then():
                c.put(row, n0 + j, tirx.BufferLoad(sums, [j]))

"""Linear layer over many rows (prefill): packed panels and a register-blocked float32 kernel.

    for every block of columns and rows, in parallel:
        for every stretch of k:
            panel[k, columns] = W, made float32 once (dequantized, transposed)      L2
            for every tile of rows:
                tile[row, k] = x, made float32                                       L1
                sum[row, column] += tile * panel                                     registers
        out = finish(sum)

Rows past the end repeat the last one and are not stored, so there is no slow tail code. All
arithmetic is float32, whatever the parameters' type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .vector_unit import VectorUnit


class PackedWeight(Protocol):
    """A weight layout that can fill float32 panels."""

    @property
    def k_step(self) -> int: ...

    def pack(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None: ...


@dataclass(frozen=True)
class Tiles:
    """Block sizes: registers (rows x vectors), columns per task, rows per task, k per stretch."""

    lanes: int
    rows: int
    vectors: int
    columns: int
    row_block: int
    depth: int

    @staticmethod
    def choose(c: Contraction, k_step: int, unit: VectorUnit) -> Tiles:
        """Sizes that fit 32 or 16 registers."""
        lanes, rows, vectors = unit.lanes, 6, unit.registers // 8
        fixed = c.fixed_rows()
        if fixed is not None:
            rows = min(rows, fixed)
        columns = vectors * lanes * (2 if c.n >= 1024 else 1)
        row_block = 64 * rows if fixed is None else min(64 * rows, -(-fixed // rows) * rows)
        depth = c.k if c.k <= 512 else 256
        if depth % k_step and k_step % depth:
            depth = k_step * max(1, depth // k_step)
        return Tiles(lanes, rows, vectors, columns, row_block, min(depth, c.k))


def emit_gemm(c: Contraction, weight: PackedWeight, tiles: Tiles) -> None:
    """Emit the whole layer at the builder's current place."""
    t = tiles
    row_blocks = T.bind(simd.ceil_div(c.rows, t.row_block))
    column_blocks = -(-c.n // t.columns)
    with T.parallel(0, row_blocks * column_blocks) as task:
        # row blocks inside, so that every thread gets its part of a short last one
        n0 = T.bind(tirx.floordiv(task, row_blocks) * t.columns)
        r0 = T.bind(tirx.floormod(task, row_blocks) * t.row_block)
        panel = T.alloc_buffer((t.depth, t.columns), "float32")
        sums = T.alloc_buffer((t.row_block, t.columns), "float32")
        count = T.bind(tirx.min(c.rows - r0, c.const(t.row_block)))
        whole, left = divmod(c.k, t.depth)
        with T.serial(0, c.const(whole)) as s:
            _stretch(c, weight, t, panel, sums, r0, count, n0, s * t.depth, t.depth)
        if left:
            k0 = c.const(whole * t.depth)
            _stretch(c, weight, t, panel, sums, r0, count, n0, k0, left)
        _store(c, t, sums, r0, count, n0)


def _stretch(
    c: Contraction,
    weight: PackedWeight,
    t: Tiles,
    panel: ir.Var,
    sums: ir.Var,
    r0: ir.Expr,
    count: ir.Expr,
    n0: ir.Expr,
    k0: ir.Expr,
    depth: int,
) -> None:
    """Add the products of one stretch of k to `sums`."""
    weight.pack(panel, n0, t.columns, k0, depth, t.lanes)
    tile = T.alloc_buffer((t.rows, t.depth), "float32")
    with T.serial(0, tirx.floordiv(count + (t.rows - 1), c.const(t.rows))) as i:
        _load_rows(c, t, tile, r0 + i * t.rows, k0, depth)
        with T.serial(0, c.const(t.columns // (t.vectors * t.lanes))) as j:
            column = T.bind(j * (t.vectors * t.lanes))
            _micro(c, t, panel, tile, sums, i * t.rows, column, k0, depth)


def _load_rows(
    c: Contraction, t: Tiles, tile: ir.Var, first: ir.Expr, k0: ir.Expr, depth: int
) -> None:
    """Copy x[first + r, k0 ...] to the tile as float32."""
    for r in range(t.rows):
        row = T.bind(tirx.min(first + r, c.rows - 1))
        whole = depth // t.lanes
        if whole:
            with T.serial(0, c.const(whole)) as i, T.vectorized(0, c.const(t.lanes)) as lane:
                k = i * t.lanes + lane
                T.buffer_store(tile, c.x(row, k0 + k).astype("float32"), [c.const(r), k])
        for k in range(whole * t.lanes, depth):
            T.buffer_store(tile, c.x(row, k0 + k).astype("float32"), [c.const(r), c.const(k)])


def _micro(
    c: Contraction,
    t: Tiles,
    panel: ir.Var,
    tile: ir.Var,
    sums: ir.Var,
    row: ir.Expr,
    column: ir.Expr,
    k0: ir.Expr,
    depth: int,
) -> None:
    """`rows x vectors` accumulators over one stretch of k."""
    lanes = t.lanes
    acc = simd.Registers(t.rows, t.vectors, lanes)
    places = [(r, v) for r in range(t.rows) for v in range(t.vectors)]
    with T.If(k0 == 0):
        with T.Then():
            acc.clear()
        with T.Else():
            for r, v in places:
                acc.set(r, v, simd.load(sums, [row + r, column + v * lanes], lanes))
    with T.serial(0, c.const(depth)) as k:
        weights = [
            T.bind(simd.load(panel, [k, column + v * lanes], lanes)) for v in range(t.vectors)
        ]
        for r in range(t.rows):
            value = T.bind(simd.splat(tirx.BufferLoad(tile, [c.const(r), k]), lanes))
            for v in range(t.vectors):
                acc.set(r, v, simd.fma(value, weights[v], acc.get(r, v), lanes))
    for r, v in places:
        simd.store(sums, [row + r, column + v * lanes], acc.get(r, v), lanes)


def _store(
    c: Contraction, t: Tiles, sums: ir.Var, r0: ir.Expr, count: ir.Expr, n0: ir.Expr
) -> None:
    """Finish the sums and store those inside the output."""

    def put(r: ir.Expr, j: ir.Expr) -> None:
        c.put(r0 + r, n0 + j, tirx.BufferLoad(sums, [r, j]))

    def rows(width: ir.Expr, vector: bool) -> None:
        with T.serial(0, count) as r:
            if vector:
                with T.serial(0, width) as i, T.vectorized(0, c.const(t.lanes)) as lane:
                    put(r, i * t.lanes + lane)
            else:
                with T.serial(0, width) as j:
                    put(r, j)

    whole = c.const(t.columns // t.lanes)
    if c.n % t.columns == 0:
        return rows(whole, True)
    inside = T.bind(tirx.min(c.const(c.n) - n0, c.const(t.columns)))
    if c.n % t.lanes == 0:
        return rows(tirx.floordiv(inside, c.const(t.lanes)), True)
    return rows(inside, False)

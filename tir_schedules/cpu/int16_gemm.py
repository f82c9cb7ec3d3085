"""Linear layer over many rows (prefill) with 4-bit weights: packed int16 panels.

Same integers as in the decode kernels, with twice the products per instruction of float32:

    for every 8 * lanes columns and every block of rows, in parallel:
        for every stretch of k:
            panel[k / 2, columns] = pairs of q - z                                     L1, L2
            for every block of k, every half of the columns, every tile of rows:
                acc[row, column] = sum of pair products                                registers
                sum[row, column] += s * sx * acc                                       L2
        out = finish(sum)

x is quantized once for all tasks, in a parallel loop before. The last task's columns end with the
matrix and may overlap its left neighbour's, which stores the same values: no tail code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .awq import CODES
from .int16_rows import Pairing, PairRows
from .vector_unit import VectorUnit

ROWS = 6  # of x in one register tile
ROW_BLOCK = 64 * ROWS  # rows of one task
DEPTH = 256  # columns of k in one panel


class PairWeight(Protocol):
    """A layout that can fill panels of int16 pairs."""

    @property
    def group(self) -> int: ...

    @property
    def pairing(self) -> Callable[[int], Pairing]: ...

    def pack_pairs(
        self,
        panel: ir.Var,
        scales: ir.Var,
        n0: ir.Expr,
        k0: ir.Expr,
        depth: int,
        block: int,
        lanes: int,
    ) -> None:
        """Fill `panel[depth / 2, 8 * lanes]` with pairs of q - z in the layout's pairing of k,
        and `scales[depth / block, 8 * lanes]`, from row n0 and column k0 of W on."""


def emit_int16_gemm(c: Contraction, weight: PairWeight, unit: VectorUnit) -> None:
    """Emit the layer at the builder's current place."""
    lanes = unit.lanes
    x = PairRows.alloc(c, c.room, weight.group, lanes, weight.pairing)
    x.fill(c, c.rows, parallel=True)
    columns = CODES * lanes
    blocks = -(-c.n // columns)
    row_blocks = T.bind(simd.ceil_div(c.rows, ROW_BLOCK))
    with T.parallel(0, row_blocks * blocks) as task:
        # row blocks inside, so that every thread gets its part of a short last one
        n0 = T.bind(tirx.min(tirx.floordiv(task, row_blocks) * columns, c.const(c.n - columns)))
        r0 = T.bind(tirx.floormod(task, row_blocks) * ROW_BLOCK)
        count = T.bind(tirx.min(c.rows - r0, c.const(ROW_BLOCK)))
        _Block(c, weight, x, n0, r0, count, lanes, unit.vnni).run()


@dataclass(frozen=True)
class _Block:
    """One task: `count` rows from r0 on, 8 * lanes columns from n0 on."""

    c: Contraction
    weight: PairWeight
    x: PairRows
    n0: ir.Expr
    r0: ir.Expr
    count: ir.Expr
    lanes: int
    vnni: bool

    @property
    def vectors(self) -> int:
        """Vectors of columns in a register tile."""
        return 4 if self.lanes == 16 else 2

    @property
    def depth(self) -> int:
        """Columns of k in a panel: whole blocks, no more than k."""
        return self.x.block * max(1, min(DEPTH, self.c.k) // self.x.block)

    def run(self) -> None:
        c, lanes = self.c, self.lanes
        panel = T.alloc_buffer((self.depth // 2, CODES * lanes), "int32")
        scales = T.alloc_buffer((self.depth // self.x.block, CODES * lanes), "float32")
        sums = T.alloc_buffer((ROW_BLOCK, CODES * lanes), "float32")
        tiles = simd.ceil_div(self.count, ROWS)
        with T.serial(0, tiles * ROWS) as r, T.serial(0, c.const(CODES)) as i:
            simd.store(sums, [r, i * lanes], simd.zeros("float32", lanes), lanes)
        whole, left = divmod(c.k, self.depth)
        with T.serial(0, c.const(whole)) as s:
            self._stretch(panel, scales, sums, tiles, s * self.depth, self.depth)
        if left:
            self._stretch(panel, scales, sums, tiles, c.const(whole * self.depth), left)
        with (
            T.serial(0, self.count) as r,
            T.serial(0, c.const(CODES)) as i,
            T.vectorized(0, c.const(lanes)) as lane,
        ):
            j = i * lanes + lane
            c.put(self.r0 + r, self.n0 + j, tirx.BufferLoad(sums, [r, j]))

    def _stretch(
        self,
        panel: ir.Var,
        scales: ir.Var,
        sums: ir.Var,
        tiles: ir.Expr,
        k0: ir.Expr,
        depth: int,
    ) -> None:
        blocks, strips = self.c.const(depth // self.x.block), self.c.const(CODES // self.vectors)
        w, x = self.weight, self.x
        w.pack_pairs(panel, scales, self.n0, k0, depth, x.block, self.lanes)
        # blocks outside: LLVM keeps the sums of two in a row in registers, and spills the products
        with T.serial(0, blocks) as b, T.serial(0, strips) as j, T.serial(0, tiles) as i:
            column = T.bind(j * (self.vectors * self.lanes))
            self._micro(panel, scales, sums, i * ROWS, column, k0, b)

    def _micro(
        self,
        panel: ir.Var,
        scales: ir.Var,
        sums: ir.Var,
        row: ir.Expr,
        column: ir.Expr,
        k0: ir.Expr,
        b: ir.Expr,
    ) -> None:
        """`ROWS x vectors` integer accumulators over one block of k, then their float sums."""
        c, lanes, half = self.c, self.lanes, self.x.block // 2
        acc = simd.Registers(ROWS, self.vectors, lanes, "int32")
        acc.clear()
        rows = [T.bind(tirx.min(self.r0 + row + r, c.rows - 1)) for r in range(ROWS)]
        with T.serial(0, c.const(half)) as p:
            at = T.bind(b * half + p)
            codes = [
                T.bind(simd.load(panel, [at, column + v * lanes], lanes))
                for v in range(self.vectors)
            ]
            for r in range(ROWS):
                x = T.bind(self.x.pair(rows[r], k0 + 2 * at))
                for v in range(self.vectors):
                    value = simd.dot_pairs(acc.get(r, v), codes[v], x, lanes, self.vnni)
                    acc.set(r, v, value)
        block = T.bind(k0 // self.x.block + b)
        for v in range(self.vectors):
            scale = T.bind(simd.load(scales, [b, column + v * lanes], lanes))
            for r in range(ROWS):
                place = [row + r, column + v * lanes]
                factor = scale * simd.splat(self.x.scale(rows[r], block), lanes)
                exact = acc.get(r, v).astype(f"float32x{lanes}")
                old = simd.load(sums, place, lanes)
                simd.store(sums, place, simd.fma(exact, factor, old, lanes), lanes)

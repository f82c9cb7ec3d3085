"""Linear layer over few rows (decode) with NK 4-bit groups: stream the rows of words, in int16.

A row of words is contiguous along k, so one vector of 16 words is 128 columns of one output. Lane
w of the accumulator sums word w's eight products, exactly, as integers; then one multiply-add
with that lane's scale. The middle of the codes costs nothing per weight: every accumulator starts
from -middle * (sum of the eight xq of its word), which depends on x alone.

Rows are read one after the other, the next four prefetched into L2 a stretch at a time.

    acc[w] = -middle * sum_i xq[8w + i] + sum_i q[n, 8w + i] xq[8w + i]
    out[n] = sum_w (s[n, 8w // G] * sx[w]) * acc[w]
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..rule import objections
from . import simd
from .awq import CODES
from .group4 import SPAN, GroupWeight
from .int16_rows import PairRows, planes_of_halves
from .vector_unit import VectorUnit

WIDTH = 4  # outputs at a time
TILE = 2  # rows of x at a time
STRETCH = 16  # vectors of words between two prefetches


def against(c: Contraction, weight: GroupWeight) -> tuple[str, ...]:
    """Rows of words along k, a few at a time; the GEMM's conditions hold too."""
    return objections(
        (weight.nk, "words lie along n"),
        (c.n % WIDTH == 0, f"n {c.n} is no multiple of {WIDTH}"),
    )


def emit_group4_gemv(c: Contraction, weight: GroupWeight, unit: VectorUnit, most_rows: int) -> None:
    """Emit the layer for at most `most_rows` rows at the builder's current place."""
    groups, lanes = c.n // WIDTH, unit.lanes
    tasks = unit.parallel_tasks(groups, c.n * c.k // 2)
    share = -(-groups // tasks)
    tile = 1 if most_rows == 1 else TILE
    with simd.loop(tasks > 1, c.const(tasks)) as task:
        x = PairRows.alloc(c, c.const(most_rows), CODES * lanes, lanes, planes_of_halves)
        rows = c.const(1) if most_rows == 1 else c.rows
        x.fill(c, rows, parallel=False)
        kernel = _Rows(c, weight, x, rows, tile, lanes, unit.vnni)
        starts = kernel.starts(most_rows)
        first = T.bind(task * share)
        count = T.bind(tirx.max(tirx.min(c.const(groups) - first, c.const(share)), c.const(0)))
        with T.serial(0, count) as g, T.serial(0, simd.ceil_div(rows, tile)) as t:
            kernel.tile_of(starts, T.bind((first + g) * WIDTH), t)


@dataclass(frozen=True)
class _Rows:
    c: Contraction
    weight: GroupWeight
    x: PairRows
    rows: ir.Expr
    tile: int
    lanes: int
    vnni: bool

    def starts(self, most_rows: int) -> ir.Var:
        """-middle * sum of xq, word by word: `[rows, K / 8]`."""
        c, lanes = self.c, self.lanes
        starts = T.alloc_buffer((most_rows, c.k // CODES), "int32")
        ones = simd.twice(simd.splat(tirx.IntImm("int32", 1), lanes), lanes)
        with T.serial(0, self.rows) as r, T.serial(0, c.const(c.k // CODES // lanes)) as s:
            total = simd.zeros("int32", lanes)
            for plane in self._planes(r, s):
                total = simd.dot_pairs(total, plane, ones, lanes, self.vnni)
            middle = simd.splat(tirx.IntImm("int32", -self.weight.middle), lanes)
            simd.store(starts, [r, s * lanes], total * middle, lanes)
        return starts

    def _planes(self, r: ir.Expr, s: ir.Expr) -> list[ir.Expr]:
        """Vector i: pairs (8w + i, 8w + i + 4) of x for the words of step s."""
        at = [s * (SPAN * self.lanes) + i * self.lanes for i in range(SPAN)]
        return [T.bind(simd.load(self.x.pairs, [r, here], self.lanes)) for here in at]

    def tile_of(self, starts: ir.Var, n0: ir.Expr, number: ir.Expr) -> None:
        """WIDTH outputs of tile `number` of the rows."""
        c, lanes = self.c, self.lanes
        r0 = T.bind(number * self.tile)
        rows = [T.bind(tirx.min(r0 + r, self.rows - 1)) for r in range(self.tile)]
        acc = simd.Registers(self.tile, WIDTH, lanes)
        acc.clear()
        vectors = c.k // CODES // lanes
        with T.serial(0, c.const(-(-vectors // STRETCH))) as stretch:
            first = T.bind(stretch * STRETCH)
            count = T.bind(tirx.min(c.const(vectors) - first, c.const(STRETCH)))
            # a loop of its own: beside a prefetch, LLVM keeps the sums in memory
            with T.If(number == 0), T.Then():
                self._ahead(n0 + WIDTH, first, count)
            self._stretch(acc, starts, n0, rows, first, count)
        for t in range(self.tile):
            self._store(acc, t, n0, r0 + t)

    def _ahead(self, n0: ir.Expr, first: ir.Expr, count: ir.Expr) -> None:
        """Prefetch `count` vectors of words of WIDTH rows; one vector is one cache line or half."""
        for j in range(WIDTH):
            n = T.bind(tirx.min(n0 + j, self.c.const(self.c.n - 1)))
            with T.serial(0, count) as s:
                simd.prefetch(self.weight.words, [n, (first + s) * self.lanes])

    def _stretch(
        self,
        acc: simd.Registers,
        starts: ir.Var,
        n0: ir.Expr,
        rows: list[ir.Expr],
        first: ir.Expr,
        count: ir.Expr,
    ) -> None:
        lanes = self.lanes
        with T.serial(0, count) as i:
            s = T.bind(first + i)
            planes = [self._planes(r, s) for r in rows]
            begin = [T.bind(simd.load(starts, [r, s * lanes], lanes)) for r in rows]
            factor = [T.bind(simd.splat(self.x.scale(r, s), lanes)) for r in rows]
            for j in range(WIDTH):
                words = T.bind(simd.load(self.weight.words, [n0 + j, s * lanes], lanes))
                codes = [T.bind(self.weight.pairs_of(words, i, lanes)) for i in range(SPAN)]
                scale = T.bind(self._scales(n0 + j, s))
                for t in range(self.tile):
                    total = begin[t]
                    for i in range(SPAN):
                        total = simd.dot_pairs(total, codes[i], planes[t][i], lanes, self.vnni)
                    value = T.bind(total).astype(f"float32x{lanes}")
                    acc.set(t, j, simd.fma(value, scale * factor[t], acc.get(t, j), lanes))

    def _scales(self, n: ir.Expr, s: ir.Expr) -> ir.Expr:
        """The scale of every lane's word."""
        w, lanes = self.weight, self.lanes
        columns = CODES * lanes
        count = max(1, columns // w.group)
        if count == 1:
            g = s * columns // w.group
            return simd.splat(tirx.BufferLoad(w.scales, [n, g]).astype("float32"), lanes)
        few = w.scales_along(n, s * count, count)
        return simd.shuffle(
            [few] * (lanes // count), [lane * count // lanes for lane in range(lanes)]
        )

    def _store(self, acc: simd.Registers, t: int, n0: ir.Expr, r: ir.Expr) -> None:
        c = self.c
        sums = T.alloc_buffer((WIDTH,), "float32")
        total = simd.lane_sums([acc.get(t, j) for j in range(WIDTH)], self.lanes)
        simd.store(sums, [tirx.IntImm("int32", 0)], total, WIDTH)
        with T.If(r < self.rows), T.Then(), T.vectorized(0, c.const(WIDTH)) as j:
            c.put(r, n0 + j, tirx.BufferLoad(sums, [j]))

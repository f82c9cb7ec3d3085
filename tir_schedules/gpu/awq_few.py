"""AWQ linear layer over up to 16 rows (decode): one pass over the words, summed by tensor cores.

    out[r, n] = sum_g s[g, n] * (sum_{k in g} (q[k, n] - z[g, n]) * x[r, k])

The words dominate the traffic, so everything follows from reading them once and in order: the
lanes of a warp hold 8 x 8 neighbouring bytes (128 channels) of 4 rows of k, every block all of
its share of k. The weights are the A side of `mma.m16n8k16` and up to 8 rows of x the B side,
because that needs 1.5 instructions a weight where float32 products need 3, and makes rows two to
eight free. Both k and the channels are numbered so that no lane moves data: lane (g, t) loads the
words of columns 2g, 2g + 1 in rows 4t ... 4t + 3 of a step of 16, and the same four of x;

    A[g, ...], A[g + 8, ...] = the codes at shifts 4p and 4p + 16 of word w     for each (w, p)
    k of columns 2t, 2t + 1, 2t + 8, 2t + 9 = 4t, 4t + 1, 4t + 2, 4t + 3

`q - z` and x are half types exactly, products and sums are float32, the scale multiplies a group's
sum; so the result is nearer than dequantizing to half. Warps of a block take units of k in turn
and meet in shared memory. Where there are too few columns for a large GPU, k is also cut over
blocks, whose sums a second small kernel adds in a fixed order (atomics would not be repeatable).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..awq_weight import CODES, AwqLayout
from ..contraction import Contraction
from . import warp
from .awq_pairs import PLANES, plane, twice, weave
from .panels import runs_along

STEP = 16  # columns k of one mma
WORDS = 2  # neighbouring words of a lane
ROWS = 8  # rows of x in one mma
CHANNELS = 8 * WORDS * CODES  # of a warp, and of a block
PITCH = CHANNELS + 4  # floats between two rows in shared memory: no bank twice
MOST = 2 * ROWS
ENOUGH, WANTED = 64, 128  # blocks: with fewer than the first, k is cut to reach the second


def applies(c: Contraction, weight: AwqLayout) -> bool:
    """True where whole steps of k lie in one group and types are one half type."""
    same = c.x_dtype in warp.HALF and str(weight.scales.dtype) == c.x_dtype
    return same and weight.group % STEP == 0 and sorted(weight.shifts) == list(range(0, 32, 4))


def emit_awq_few(c: Contraction, weight: AwqLayout, most_rows: int) -> None:
    """Emit the layer for at most `most_rows` (8 or 16) rows at the builder's current place."""
    few = _Few(c, weight, -(-most_rows // ROWS))
    few.emit()


@dataclass(frozen=True)
class _Few:
    c: Contraction
    weight: AwqLayout
    parts: int  # of 8 rows
    warps: int = field(init=False)
    unit: int = field(init=False)
    splits: int = field(init=False)

    def __post_init__(self) -> None:
        unit = max(u for u in range(STEP, 129, STEP) if self.weight.group % u == 0)
        blocks, warps = -(-self.c.n // CHANNELS), 8 // self.parts
        splits = 1 if blocks >= ENOUGH else -(-WANTED // blocks)
        splits = max(1, min(splits, -(-(self.c.k // unit) // warps)))
        for name, value in (("warps", warps), ("unit", unit), ("splits", splits)):
            object.__setattr__(self, name, value)

    @property
    def most(self) -> int:
        """Rows of the accumulators that can hold something."""
        rows = self.c.fixed_rows()
        return ROWS * self.parts if rows is None else min(rows, ROWS * self.parts)

    def emit(self) -> None:
        c = self.c
        columns = c.const(-(-c.n // CHANNELS))
        partial = None
        if self.splits > 1:
            shape = (self.splits, self.most, c.n)
            partial = T.alloc_buffer(shape, "float32", scope="global")
        blocks = [columns, c.const(self.splits)]
        with warp.kernel(c.index, blocks, self.warps) as (block, split, w, lane):
            _Block(self, block, split, w, lane).run(partial)
        if partial is not None:
            self._add_splits(partial)

    def _add_splits(self, partial: ir.Var) -> None:
        c, threads = self.c, 4 * warp.WARP
        blocks = [c.const(-(-c.n // threads)), c.rows]
        with warp.kernel(c.index, blocks, 4) as (block, r, w, lane):
            n = T.bind(block * threads + w * warp.WARP + lane)
            with T.If(n < c.n), T.Then():
                loads = [tirx.BufferLoad(partial, [c.const(s), r, n]) for s in range(self.splits)]
                c.put(r, n, T.bind(sum(loads[1:], loads[0])))


@dataclass(frozen=True)
class _Block:
    """128 channels from `column` (in words) on, the units of k of one split."""

    few: _Few
    block: ir.Expr
    split: ir.Expr
    warp: ir.Expr
    lane: ir.Expr

    def run(self, partial: ir.Var | None) -> None:
        few, c = self.few, self.few.c
        size = CODES * WORDS // 2 * 4 * few.parts
        total = T.alloc_buffer((size,), "float32", scope="local")
        acc = T.alloc_buffer((size,), "float32", scope="local")
        with T.unroll(0, size) as i:
            T.buffer_store(total, tirx.const(0.0, "float32"), [i])
        g, t = T.bind(self.lane // 4), T.bind(self.lane % 4)
        last = c.n // CODES - 1
        first = (self.block * 8 + g) * WORDS
        columns = [T.bind(tirx.min(first + i, c.const(last))) for i in range(WORDS)]
        units = c.k // few.unit
        share = -(-units // few.splits)
        with T.serial(0, c.const(-(-share // few.warps))) as i:
            inside = T.bind(i * few.warps + self.warp)
            u = T.bind(self.split * share + inside)
            with T.If(tirx.all(inside < share, u < units)), T.Then():
                self._unit(acc, total, u * few.unit, columns, g, t)
        self._meet(total, partial, g, t)

    def _unit(
        self,
        acc: ir.Var,
        total: ir.Var,
        k0: ir.Expr,
        columns: list[ir.Expr],
        g: ir.Expr,
        t: ir.Expr,
    ) -> None:
        """total += scale * sum over one unit of k, which lies in one group."""
        few, c, w = self.few, self.few.c, self.few.weight
        k0 = T.bind(k0)
        group = T.bind(k0 // w.group)
        zero_words = [T.bind(tirx.BufferLoad(w.zeros, [group, at])) for at in columns]
        zeros = T.alloc_buffer((WORDS * CODES,), "uint32", scope="local")
        for i in range(WORDS * CODES):
            shift = 4 * (i % CODES // 2) + 16 * (i % 2)
            T.buffer_store(zeros, twice(zero_words[i // CODES], shift, c.x_dtype), [i])
        with T.unroll(0, few.parts * CODES * WORDS // 2 * 4) as i:
            T.buffer_store(acc, tirx.const(0.0, "float32"), [i])
        steps = few.unit // STEP
        at_once = max(d for d in (4, 2, 1) if steps % d == 0 and d * few.parts <= 4)
        with T.serial(0, c.const(steps // at_once)) as s:
            k = T.bind(k0 + s * (STEP * at_once) + t * 4)
            words, xs = self._load(k, at_once, columns, g)
            for d in range(at_once):
                self._multiply(acc, words, xs, zeros, d)
        scales = [[self._scale(group, columns[i], j) for j in range(CODES)] for i in range(WORDS)]
        for part in range(few.parts):
            for i in range(WORDS):
                for p in range(PLANES):
                    for e in range(4):
                        at = ((part * WORDS + i) * PLANES + p) * 4 + e
                        channel = w.shifts.index(4 * p + 16 * (e // 2))
                        value = total[at] + scales[i][channel] * acc[at]
                        T.buffer_store(total, value, [at])

    def _scale(self, group: ir.Expr, column: ir.Expr, channel: int) -> ir.Expr:
        scale = tirx.BufferLoad(self.few.weight.scales, [group, column * CODES + channel])
        return T.bind(scale.astype("float32"))

    def _load(
        self, k: ir.Expr, steps: int, columns: list[ir.Expr], g: ir.Expr
    ) -> tuple[ir.Var, ir.Var]:
        """The words of rows k ... k + 3 and x there, for `steps` steps; loads before any use."""
        few, c, w = self.few, self.few.c, self.few.weight
        words = T.alloc_buffer((steps, 4, WORDS), "uint32", scope="local")
        for d in range(steps):
            for row in range(4):
                at = k + (d * STEP + row)
                if (c.n // CODES) % WORDS == 0:
                    source = warp.address(w.words, [at, columns[0]])
                    warp.copy(8, warp.address(words, [d, row, 0]), source)
                else:
                    for i, column in enumerate(columns):
                        T.buffer_store(words, tirx.BufferLoad(w.words, [at, column]), [d, row, i])
        xs = T.alloc_buffer((steps, few.parts, 2), "uint32", scope="local")
        for part in range(few.parts):
            r = T.bind(g + ROWS * part)
            with T.If(r < c.rows):
                with T.Then():
                    for d in range(steps):
                        self._load_x(warp.address(xs, [d, part, 0]), r, k + d * STEP)
                with T.Else():
                    for d in range(steps):
                        for i in range(2):
                            T.buffer_store(xs, warp.u32(0), [d, part, i])
        return words, xs

    def _load_x(self, to: ir.Expr, r: ir.Expr, k: ir.Expr) -> None:
        """Four neighbours of x; an input that is computed is computed here."""
        c, axis = self.few.c, tirx.Var("k", k.ty)
        if runs_along(c.x(r, axis), axis, 4):
            x = c.x(r, k)
            warp.copy(8, to, warp.address(x.source, list(x.indices)))
            return
        values = T.alloc_buffer((4,), c.x_dtype, scope="local")
        for i in range(4):
            T.buffer_store(values, c.x(r, k + i), [i])
        warp.copy(8, to, warp.address(values, [0]))

    def _multiply(self, acc: ir.Var, words: ir.Var, xs: ir.Var, zeros: ir.Var, d: int) -> None:
        few, dtype = self.few, self.few.c.x_dtype
        for i in range(WORDS):
            row = [words[d, r, i] for r in range(4)]
            woven = [weave(row[0], row[1]), weave(row[2], row[3])]
            for p in range(PLANES):
                a = [
                    T.bind(
                        warp.subtract_pair(
                            dtype,
                            plane(woven[late][half], p, dtype),
                            zeros[(i * PLANES + p) * 2 + half],
                        )
                    )
                    for late in range(2)
                    for half in range(2)
                ]
                for part in range(few.parts):
                    at = ((part * WORDS + i) * PLANES + p) * 4
                    b = [xs[d, part, 0], xs[d, part, 1]]
                    warp.mma(dtype, warp.address(acc, [at]), a, b)

    def _meet(self, total: ir.Var, partial: ir.Var | None, g: ir.Expr, t: ir.Expr) -> None:
        """Add the warps' sums and store them."""
        few, c = self.few, self.few.c
        shape = (few.warps, few.parts * ROWS, PITCH)
        sums = T.alloc_buffer(shape, "float32", scope="shared")
        for part in range(few.parts):
            for i in range(WORDS):
                for p in range(PLANES):
                    for e in range(4):
                        at = ((part * WORDS + i) * PLANES + p) * 4 + e
                        place = ((i * PLANES + p) * 2 + e // 2) * 8 + g
                        where = [self.warp, part * ROWS + 2 * t + e % 2, place]
                        T.buffer_store(sums, total[at], where)
        warp.barrier()
        threads = few.warps * warp.WARP
        thread = T.bind(self.warp * warp.WARP + self.lane)
        with T.serial(0, c.const(-(-few.most * CHANNELS // threads))) as i:
            r = T.bind((i * threads + thread) // CHANNELS)
            j = T.bind((i * threads + thread) % CHANNELS)
            n = T.bind(self.block * CHANNELS + j)
            inside = tirx.all(n < c.n, r < (c.rows if c.fixed_rows() is None else few.most))
            with T.If(inside), T.Then():
                place = T.bind(self._place(j))
                loads = [tirx.BufferLoad(sums, [v, r, place]) for v in range(few.warps)]
                value = T.bind(sum(loads[1:], loads[0]))
                if partial is None:
                    c.put(r, n, value)
                else:
                    T.buffer_store(partial, value, [self.split, r, n])

    def _place(self, j: ir.Expr) -> ir.Expr:
        """Where channel j of the block lies in a row of the sums: its code's place, then g.

        The order of the codes is a permutation of eight, here the digits of one number.
        """
        order = 0
        for channel, shift in enumerate(self.few.weight.shifts):
            order |= (shift % 16 // 4 * 2 + shift // 16) << (4 * channel)
        wide = CODES * WORDS
        digit = warp.u32(order) >> ((j % CODES) * 4).astype("uint32")
        code = (digit & warp.u32(15)).astype(str(j.ty))
        return (j % wide // CODES * CODES + code) * 8 + j // wide

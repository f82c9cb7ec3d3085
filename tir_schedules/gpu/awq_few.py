"""AWQ linear layer over up to 16 rows (decode): one pass over the words, summed by tensor cores.

    out[r, n] = sum_g s[g, n] * (sum_{k in g} (q[k, n] - z[g, n]) * x[r, k])

The words dominate the traffic, so everything follows from reading them once and in order: the
lanes of a warp read whole sectors, 64 neighbouring bytes (128 channels) of 4 rows of k at a time,
16 such reads under way. The weights are the A side of `mma.m16n8k16`, up to 8 rows of x the B
side: that needs 1.5 instructions a weight where float32 products need 3, and makes rows two to
eight free. Both k and the channels are numbered so that no lane moves data: lane (g, t) loads the
two words of its g in rows 4t ... 4t + 3 of a step of 16, and the same four of x;

    A[g, ...], A[g + 8, ...] = the codes at shifts 4p and 4p + 16 of word w     for each (w, p)
    k of columns 2t, 2t + 1, 2t + 8, 2t + 9 = 4t, 4t + 1, 4t + 2, 4t + 3

`q - z` and x are half types exactly, products and sums are float32, the scale multiplies a group's
sum; so the result is nearer than dequantizing to half. Warps of a block take units of k in turn
and meet in shared memory.

A layer with few channels gets blocks of 64, of twice the warps and reads of 32 bytes, so that more
of a large GPU is busy. Rejected: cutting k over blocks too, whose sums a second kernel adds. It
costs a launch, as long as such a layer takes, and a workspace inside the function, whose address a
CUDA graph would keep after TVM's pool has moved it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..awq_weight import CODES, AwqLayout
from ..contraction import Contraction
from . import warp
from .awq_pairs import PLANES, plane, twice, weave
from .panels import runs_along

STEP = 16  # columns k of one mma
ROWS = 8  # rows of x in one mma
MOST = 2 * ROWS
ENOUGH = 64  # blocks that keep a large GPU's memory busy


def applies(c: Contraction, weight: AwqLayout) -> bool:
    """True where whole steps of k lie in one group and types are one half type."""
    same = c.x_dtype in warp.HALF and str(weight.scales.dtype) == c.x_dtype
    return same and weight.group % STEP == 0 and sorted(weight.shifts) == list(range(0, 32, 4))


@dataclass(frozen=True)
class Plan:
    """What a measurement may choose: neighbouring words of a lane, warps, steps loaded at once."""

    words: int
    warps: int
    ahead: int

    @classmethod
    def usual(cls, n: int, parts: int) -> Plan:
        """Without a measurement; `parts` of 8 rows."""
        words = 2 if n >= ENOUGH * 8 * 2 * CODES else 1
        return cls(words, 16 // (words * parts), 8 // (words * parts))

    def fits(self, parts: int) -> bool:
        """True where the warps' sums fit 48 KiB and the loads 128 registers."""
        sums = self.warps * parts * ROWS * (8 * self.words * CODES + 4) * 4
        return sums <= 48 << 10 and self.words * self.ahead * parts <= 16

    def under_way(self) -> int:
        """Bytes of words that a block has asked for while it waits."""
        return self.warps * warp.WARP * self.ahead * 4 * 4 * self.words


def emit_awq_few(
    c: Contraction, weight: AwqLayout, most_rows: int, plan: Plan | None = None
) -> None:
    """Emit the layer for at most `most_rows` (8 or 16) rows at the builder's current place."""
    parts = -(-most_rows // ROWS)
    few = _Few(c, weight, parts, plan or Plan.usual(c.n, parts))
    few.emit()


@dataclass(frozen=True)
class _Few:
    c: Contraction
    weight: AwqLayout
    parts: int  # of 8 rows
    plan: Plan

    @property
    def words(self) -> int:
        return self.plan.words

    @property
    def channels(self) -> int:
        """Of a warp, and of a block."""
        return 8 * self.words * CODES

    @property
    def warps(self) -> int:
        return self.plan.warps

    @property
    def unit(self) -> int:
        """Columns k that a warp takes at a time, within one group."""
        return max(u for u in range(STEP, 129, STEP) if self.weight.group % u == 0)

    @property
    def sums(self) -> list[tuple[int, int, int, int, int]]:
        """Accumulators of a lane: part of the rows, word, plane, element of mma, and place."""
        order = [
            (part, i, p, e)
            for part in range(self.parts)
            for i in range(self.words)
            for p in range(PLANES)
            for e in range(4)
        ]
        return [(*which, at) for at, which in enumerate(order)]

    @property
    def most(self) -> int:
        """Rows of the accumulators that can hold something."""
        rows = self.c.fixed_rows()
        return ROWS * self.parts if rows is None else min(rows, ROWS * self.parts)

    def emit(self) -> None:
        c = self.c
        blocks = [c.const(-(-c.n // self.channels))]
        with warp.kernel(c.index, blocks, self.warps) as (block, w, lane):
            _Block(self, block, w, lane).run()


@dataclass(frozen=True)
class _Block:
    """The channels of one block, all of k."""

    few: _Few
    block: ir.Expr
    warp: ir.Expr
    lane: ir.Expr

    def run(self) -> None:
        few, c = self.few, self.few.c
        size = len(few.sums)
        total = T.alloc_buffer((size,), "float32", scope="local")
        acc = T.alloc_buffer((size,), "float32", scope="local")
        with T.unroll(0, size) as i:
            T.buffer_store(total, tirx.const(0.0, "float32"), [i])
        g, t = T.bind(self.lane // 4), T.bind(self.lane % 4)
        last = c.n // CODES - 1
        first = (self.block * 8 + g) * few.words
        columns = [T.bind(tirx.min(first + i, c.const(last))) for i in range(few.words)]
        units = c.k // few.unit
        with T.serial(0, c.const(-(-units // few.warps))) as i:
            u = T.bind(i * few.warps + self.warp)
            with T.If(u < units), T.Then():
                self._unit(acc, total, u * few.unit, columns, g, t)
        self._meet(total, g, t)

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
        zeros = T.alloc_buffer((few.words * CODES,), "uint32", scope="local")
        for i in range(few.words * CODES):
            shift = 4 * (i % CODES // 2) + 16 * (i % 2)
            T.buffer_store(zeros, twice(zero_words[i // CODES], shift, c.x_dtype), [i])
        with T.unroll(0, len(few.sums)) as i:
            T.buffer_store(acc, tirx.const(0.0, "float32"), [i])
        steps = few.unit // STEP
        at_once = max(d for d in (8, 4, 2, 1) if steps % d == 0 and d <= few.plan.ahead)
        with T.serial(0, c.const(steps // at_once)) as s:
            k = T.bind(k0 + s * (STEP * at_once) + t * 4)
            words, xs = self._load(k, at_once, columns, g)
            for d in range(at_once):
                self._multiply(acc, words, xs, zeros, d)
        scales = [[self._scale(group, at, j) for j in range(CODES)] for at in columns]
        for _, i, p, e, at in few.sums:
            channel = w.shifts.index(4 * p + 16 * (e // 2))
            T.buffer_store(total, total[at] + scales[i][channel] * acc[at], [at])

    def _scale(self, group: ir.Expr, column: ir.Expr, channel: int) -> ir.Expr:
        scale = tirx.BufferLoad(self.few.weight.scales, [group, column * CODES + channel])
        return T.bind(scale.astype("float32"))

    def _load(
        self, k: ir.Expr, steps: int, columns: list[ir.Expr], g: ir.Expr
    ) -> tuple[ir.Var, ir.Var]:
        """The words of rows k ... k + 3 and x there, for `steps` steps; loads before any use."""
        few, c, w = self.few, self.few.c, self.few.weight
        words = T.alloc_buffer((steps, 4, few.words), "uint32", scope="local")
        for d in range(steps):
            for row in range(4):
                at = k + (d * STEP + row)
                if few.words == 2 and c.n // CODES % 2 == 0:
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
        for i in range(few.words):
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
                    at = ((part * few.words + i) * PLANES + p) * 4
                    b = [xs[d, part, 0], xs[d, part, 1]]
                    warp.mma(dtype, warp.address(acc, [at]), a, b)

    def _meet(self, total: ir.Var, g: ir.Expr, t: ir.Expr) -> None:
        """Add the warps' sums and store them."""
        few, c = self.few, self.few.c
        # four floats more than a row holds: no two lanes in one bank
        shape = (few.warps, few.parts * ROWS, few.channels + 4)
        sums = T.alloc_buffer(shape, "float32", scope="shared")
        for part, i, p, e, at in few.sums:
            place = ((i * PLANES + p) * 2 + e // 2) * 8 + g
            T.buffer_store(sums, total[at], [self.warp, part * ROWS + 2 * t + e % 2, place])
        warp.barrier()
        threads = few.warps * warp.WARP
        thread = T.bind(self.warp * warp.WARP + self.lane)
        with T.serial(0, c.const(-(-few.most * few.channels // threads))) as i:
            r = T.bind((i * threads + thread) // few.channels)
            j = T.bind((i * threads + thread) % few.channels)
            n = T.bind(self.block * few.channels + j)
            inside = tirx.all(n < c.n, r < (c.rows if c.fixed_rows() is None else few.most))
            with T.If(inside), T.Then():
                place = T.bind(self._place(j))
                loads = [tirx.BufferLoad(sums, [v, r, place]) for v in range(few.warps)]
                c.put(r, n, T.bind(sum(loads[1:], loads[0])))

    def _place(self, j: ir.Expr) -> ir.Expr:
        """Where channel j of the block lies in a row of the sums: its code's place, then g.

        The order of the codes is a permutation of eight, here the digits of one number.
        """
        order = 0
        for channel, shift in enumerate(self.few.weight.shifts):
            order |= (shift % 16 // 4 * 2 + shift // 16) << (4 * channel)
        wide = CODES * self.few.words
        digit = warp.u32(order) >> ((j % CODES) * 4).astype("uint32")
        code = (digit & warp.u32(15)).astype(str(j.ty))
        return (j % wide // CODES * CODES + code) * 8 + j // wide

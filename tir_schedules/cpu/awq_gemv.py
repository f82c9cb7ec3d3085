"""Linear layer over few rows (decode) with AutoAWQ words: stream the words once, in integers.

The codes are integers, so the sum over one block of k can be exact integers too:

    x[k] = sx * xq[k]                   xq int16, one float32 sx per row and block of k
    sum_k W[n, k] x[k] = s[n] * sx * (sum_k q[n, k] xq[k] - z[n] * sum_k xq[k])

Rounding x to 16 bits relative to the block's largest |x| is the only error: at most 2^-16 of it,
nearer than float16 for all but values far below the largest. Which instructions multiply, and how
rows of words are interleaved for them, is the `Weave`'s (`awq_weave.py`).

Memory wants to be read along the rows of words, a whole row at a time: every thread takes its own
stretch of k, keeps sums of all channels, and a second loop adds the threads' sums. Splitting the
channels instead, each thread reading 1 KB of every row, reached 60 % of the read stream; this
order reaches 95 %.

One row of x: 8 rows of words at a time, nibbles multiplied straight from registers. Several rows of
x: one block of k of one vector of words is unpacked into a buffer of 16 or 32 KiB and multiplied by
all rows from there. In both, what comes next in memory order is prefetched into L2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..rule import objections
from . import simd
from .awq import CODES, AwqWeight
from .awq_weave import Sums, Weave, choose
from .int16_rows import QuantizedRows, block_of
from .vector_unit import NO_PAIRS, VectorUnit

DEEP = 8  # rows of words between two visits of an accumulator, for one row of x
TILE = 2  # rows of x in one register tile
# vectors of words of a task, so that its sums (and with several rows the next block) stay in L2
WIDEST, WIDEST_OF_SEVERAL = 128, 32


def against(c: Contraction, weight: AwqWeight, unit: VectorUnit) -> tuple[str, ...]:
    """Integer kernels want whole blocks of k, at least one vector of words, and x86."""
    return objections(
        (unit.pairs, NO_PAIRS),
        (c.n // CODES >= unit.lanes, f"n {c.n} is no vector of {unit.lanes} words"),
        (weight.group % 16 == 0, f"the group {weight.group} is no multiple of 16"),
        (sorted(weight.shifts) == list(range(0, 32, 4)), "a nibble of the words holds no code"),
    )


def emit_awq_gemv(c: Contraction, weight: AwqWeight, unit: VectorUnit, most_rows: int) -> None:
    """Emit the layer for at most `most_rows` rows at the builder's current place."""
    lanes = unit.lanes
    vectors, blocks = -(-c.n // CODES // lanes), c.k // block_of(weight.group)
    tasks = unit.parallel_tasks(vectors * blocks, c.n * c.k // 2)
    widest = WIDEST if most_rows == 1 else WIDEST_OF_SEVERAL
    split = Split.choose(blocks, vectors, tasks, widest)
    rows = c.const(1) if most_rows == 1 else c.rows
    sums = T.alloc_buffer((split.deep, most_rows, vectors * CODES, lanes), "float32")
    with simd.loop(tasks > 1, c.const(split.deep * split.wide)) as task:
        weave = choose(weight, unit)
        _Task(c, weave, weave.rows(c, most_rows), rows, most_rows, split, sums).run(task)
    parts = unit.parallel_tasks(min(vectors, tasks), 4 * split.deep * most_rows * c.n)
    share = -(-vectors // parts)
    with simd.loop(parts > 1, c.const(parts)) as part:
        first = T.bind(part * share)
        count = T.bind(tirx.min(c.const(vectors) - first, c.const(share)))
        _store(c, sums, split.deep, rows, first, count, lanes)


@dataclass(frozen=True)
class Split:
    """`deep * wide` tasks of `blocks` blocks of k and `vectors` vectors of words each."""

    deep: int
    wide: int
    blocks: int
    vectors: int

    @staticmethod
    def choose(blocks: int, vectors: int, tasks: int, widest: int) -> Split:
        """The split that leaves the longest queue of work least; parts of rows read a quarter
        slower than whole ones."""
        best: tuple[int, Split] | None = None
        least = -(-vectors // widest)
        for deep in range(1, min(blocks, tasks) + 1):
            wide = max(least, tasks // deep)
            split = Split(deep, wide, -(-blocks // deep), -(-vectors // wide))
            queue = -(-deep * wide // tasks) * split.blocks * split.vectors
            cost = queue * (4 if wide == least else 5)
            if best is None or cost < best[0]:
                best = cost, split
        assert best is not None
        return best[1]


@dataclass(frozen=True)
class _Task:
    """One stretch of k of one stretch of the channels."""

    c: Contraction
    weave: Weave
    x: QuantizedRows
    rows: ir.Expr
    most_rows: int
    split: Split
    sums: ir.Var

    @property
    def lanes(self) -> int:
        return self.weave.lanes

    def run(self, task: ir.Expr) -> None:
        c, split, zero = self.c, self.split, self.c.const(0)
        deep = T.bind(task // split.wide)
        first_b = T.bind(deep * split.blocks)
        blocks = T.bind(self._clip(c.k // self.x.block, first_b, split.blocks))
        first = T.bind(task % split.wide * split.vectors)
        vectors = -(-c.n // CODES // self.lanes)
        count = T.bind(self._clip(vectors, first, split.vectors))
        self.x.fill_blocks(c, self.rows, first_b, blocks)
        with T.serial(0, self.rows) as r, T.serial(0, count * CODES) as i:
            where = [deep, r, first * CODES + i, zero]
            simd.store(self.sums, where, simd.zeros("float32", self.lanes), self.lanes)
        with T.serial(0, blocks) as i:
            b = T.bind(first_b + i)
            if self.most_rows == 1:
                self._one_row(deep, b, first, count)
            else:
                self._several_rows(deep, b, first, count)

    def _clip(self, all_: int, first: ir.Expr, most: int) -> ir.Expr:
        return tirx.max(tirx.min(self.c.const(all_) - first, self.c.const(most)), self.c.const(0))

    def _one_row(self, deep: ir.Expr, b: ir.Expr, first: ir.Expr, count: ir.Expr) -> None:
        """One block of k, 8 rows of words at a time, the integer sums in a buffer."""
        c, lanes, weave, zero = self.c, self.lanes, self.weave, self.c.const(0)
        acc = T.alloc_buffer((self.split.vectors * CODES, lanes), "int32")
        with T.serial(0, count * CODES) as i:
            simd.store(acc, [i, zero], simd.zeros("int32", lanes), lanes)
        with T.serial(0, c.const(self.x.block // DEEP)) as j:
            k0 = T.bind(b * self.x.block + j * DEEP)
            steps = range(0, DEEP, weave.step)
            operands = [self._operands(zero, k0 + step) for step in steps]
            with T.serial(0, count) as v:
                word = T.bind(_word(c, first + v, lanes))
                for i in range(DEEP):
                    self._prefetch(k0 + DEEP + i, word)
                where = [[v * CODES + i, zero] for i in range(CODES)]
                none = simd.zeros("int32", lanes)
                # the low digit goes on from the buffer, others start anew
                sums: list[Sums] = [
                    [none] * (weave.digits - 1) + [T.bind(simd.load(acc, at, lanes))]
                    for at in where
                ]
                for step, x in zip(steps, operands, strict=True):
                    for i, codes in enumerate(weave.planes(k0 + step, word)):
                        sums[i] = weave.dot(sums[i], codes, x)
                for at, total in zip(where, sums, strict=True):
                    simd.store(acc, at, weave.merge(total), lanes)
        with T.serial(0, count) as v:
            add = self._group(b, T.bind(first + v))
            each = CODES // weave.digits
            for part in range(weave.digits):
                planes = range(part * each, (part + 1) * each)
                add(
                    deep, zero, part, [simd.load(acc, [v * CODES + i, zero], lanes) for i in planes]
                )

    def _several_rows(self, deep: ir.Expr, b: ir.Expr, first: ir.Expr, count: ir.Expr) -> None:
        """One block of k, unpacked for one vector of words, then tiles of rows in registers."""
        c, lanes, weave, zero = self.c, self.lanes, self.weave, self.c.const(0)
        steps, tile = self.x.block // weave.step, TILE if lanes == 16 else 1
        unpacked = T.alloc_buffer((steps * CODES, lanes), "int32")
        with T.serial(0, count) as v:
            vector = T.bind(first + v)
            word = T.bind(_word(c, vector, lanes))
            with T.serial(0, c.const(steps)) as p:
                for i, codes in enumerate(weave.planes(b * self.x.block + weave.step * p, word)):
                    simd.store(unpacked, [p * CODES + i, zero], codes, lanes)
            add = self._group(b, vector)
            tiles = T.bind(simd.ceil_div(self.rows, tile))
            share = T.bind((c.const(self.split.vectors) + tiles - 1) // tiles)
            with T.serial(0, tiles) as t:
                self._ahead(b + 1, v, T.bind(first + t * share), share)
                rows = [T.bind(tirx.min(t * tile + r, self.rows - 1)) for r in range(tile)]
                for part in range(weave.digits):
                    planes = self._row_tile(unpacked, b, rows, part)
                    for r in range(tile):
                        with T.If(t * tile + r < self.rows), T.Then():
                            add(deep, rows[r], part, planes[r])

    def _row_tile(
        self, unpacked: ir.Var, b: ir.Expr, rows: list[ir.Expr], part: int
    ) -> list[list[ir.Expr]]:
        """Sums of the part's planes over block b, for every row."""
        weave, each = self.weave, CODES // self.weave.digits
        acc = simd.Registers(len(rows) * each, weave.digits, self.lanes, "int32")
        acc.clear()
        # no prefetch in this loop: beside one, LLVM keeps the sums in memory
        with T.serial(0, self.c.const(self.x.block // weave.step)) as p:
            k = T.bind(b * self.x.block + p * weave.step)
            operands = [self._operands(r, k) for r in rows]
            for i in range(each):
                at = [p * CODES + part * each + i, self.c.const(0)]
                codes = T.bind(simd.load(unpacked, at, self.lanes))
                for r, x in enumerate(operands):
                    here = r * each + i
                    old = [acc.get(here, d) for d in range(weave.digits)]
                    for d, total in enumerate(weave.dot(old, codes, x)):
                        acc.set(here, d, total)
        return [
            [
                T.bind(weave.merge([acc.get(r * each + i, d) for d in range(weave.digits)]))
                for i in range(each)
            ]
            for r in range(len(rows))
        ]

    def _operands(self, r: ir.Expr, k: ir.Expr) -> list[ir.Expr]:
        return [T.bind(x) for x in self.x.operands(r, k)]

    def _ahead(self, b: ir.Expr, v: ir.Expr, first: ir.Expr, count: ir.Expr) -> None:
        """Prefetch `count` vectors of words from `first` on of some rows of block b.

        The unpacking walks down the rows one vector wide; memory wants to be read along them, and
        evenly, a share before every tile instead of a burst: vector v asks for its share of rows.
        """
        rows = -(-self.x.block // self.split.vectors)
        for i in range(rows):
            row = T.bind(b * self.x.block + v * rows + i)
            with T.serial(0, count) as j:
                self._prefetch(row, (first + j) * self.lanes)

    def _prefetch(self, k: ir.Expr, word: ir.Expr) -> None:
        row = tirx.min(k, self.c.const(self.c.k - 1))
        simd.prefetch(self.weave.weight.words, [row, word])

    def _group(
        self, b: ir.Expr, v: ir.Expr
    ) -> Callable[[ir.Expr, ir.Expr, int, list[ir.Expr]], None]:
        """Read zeros and scales of a block; hand out `sums[r] += s * sx * (acc - z * sum(xq))`."""
        w, lanes = self.weave.weight, self.lanes
        g = T.bind(b * self.x.block // w.group)
        word = T.bind(_word(self.c, v, lanes))
        n0 = T.bind(word * CODES)
        points = [n0 + i * lanes for i in range(CODES)]
        following = T.bind(tirx.min(g + 1, self.c.const(self.c.k // w.group - 1)))
        simd.prefetch(w.zeros, [following, word])
        for i in range(0, CODES, 2):  # two vectors of float16 to a cache line
            simd.prefetch(w.scales, [following, points[i]])
        codes = [T.bind(w.codes(w.zeros, g, n, lanes)) for n in points]
        scales = [T.bind(w.scale(g, n, lanes)) for n in points]

        def add(deep: ir.Expr, r: ir.Expr, part: int, planes: list[ir.Expr]) -> None:
            sx = T.bind(simd.splat(self.x.scale(r, b), lanes))
            sum_x = T.bind(simd.splat(self.x.total(r, b), lanes))
            for i, plane in self.weave.natural(planes, part):
                exact = (plane - codes[i] * sum_x).astype(f"float32x{lanes}")
                at = [deep, r, v * CODES + i, self.c.const(0)]
                old = simd.load(self.sums, at, lanes)
                simd.store(self.sums, at, simd.fma(exact, scales[i] * sx, old, lanes), lanes)

        return add


def _word(c: Contraction, v: ir.Expr, lanes: int) -> ir.Expr:
    """First word of vector v; the last vector ends with the row and may overlap its left."""
    return tirx.min(v * lanes, c.const(c.n // CODES - lanes))


def _store(
    c: Contraction,
    sums: ir.Var,
    deep: int,
    rows: ir.Expr,
    first: ir.Expr,
    count: ir.Expr,
    lanes: int,
) -> None:
    """Finish the channels of `count` vectors from `first` on."""
    with T.serial(0, rows) as r, T.serial(0, count) as v:
        vector = T.bind(first + v)
        n0 = T.bind(_word(c, vector, lanes) * CODES)
        with T.serial(0, c.const(CODES)) as i, T.vectorized(0, c.const(lanes)) as lane:
            value = tirx.BufferLoad(sums, [c.const(0), r, vector * CODES + i, lane])
            for d in range(1, deep):
                value += tirx.BufferLoad(sums, [c.const(d), r, vector * CODES + i, lane])
            c.put(r, n0 + i * lanes + lane, value)

"""Linear layer over few rows (decode) with AutoAWQ words: stream the words once, in int16.

The codes are integers, so the sum over one block of k can be exact integers too:

    x[k] = sx * xq[k]                   xq int16, one float32 sx per row and block of k
    sum_k W[n, k] x[k] = s[n] * sx * (sum_k q[n, k] xq[k] - z[n] * sum_k xq[k])

Rounding x to 16 bits relative to the block's largest |x| is the only error: at most 2^-16 of it,
nearer than float16 for all but values far below the largest. Integer pairs cost a third of the
instructions of dequantizing to float32: two rows of words are woven into one vector that has
k in its low and k + 1 in its high halves, then each nibble is one mask and one multiply-add of
pairs (vpdpwssd with VNNI, vpmaddwd and an add elsewhere), with one shift for every two nibbles:

    low[c]  = (w[k, c] & 0xffff) | (w[k + 1, c] << 16)      nibbles at shifts 0 4 8 12
    high[c] = (w[k, c] >> 16) | (w[k + 1, c] & 0xffff0000)  nibbles at shifts 16 20 24 28

Order of the loops for one row of x: a wide stretch of words of 8 rows of k at a time, because
walking down k in one narrow column of words jumps a whole row per step and reads at a quarter of
the speed; the nibbles are multiplied straight from registers. Several rows of x: one block of k
of one vector of words is unpacked into a buffer of 32 KiB and multiplied by all rows from there,
while the words of the next block are prefetched in the order in which they lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .awq import CODES, AwqWeight
from .int16_rows import QuantizedRows

DEEP = 8  # rows of words between two visits of an accumulator, for one row of x
TILE = 2  # rows of x in one register tile
STRETCH = 32  # vectors of words in one task at most: its accumulators stay in the caches


def applies(c: Contraction, weight: AwqWeight, target: Target, lanes: int) -> bool:
    """True where int16 kernels fit: whole blocks of k, at least one vector of words, x86."""
    pairs = simd.has(target, "avx512bw" if lanes == 16 else "avx2")
    wide = c.n // CODES >= lanes
    even = weight.group % 16 == 0 and sorted(weight.shifts) == list(range(0, 32, 4))
    return wide and even and pairs


def emit_awq_gemv(
    c: Contraction, weight: AwqWeight, target: Target, lanes: int, most_rows: int
) -> None:
    """Emit the layer for at most `most_rows` rows at the builder's current place."""
    vectors = -(-c.n // CODES // lanes)
    tasks = simd.tasks(target, vectors, c.n * c.k // 2)
    share = min(STRETCH, -(-vectors // tasks))
    tasks = -(-vectors // share)
    vnni = lanes == 16 and simd.has(target, "avx512vnni")
    with simd.loop(tasks > 1, c.const(tasks)) as task:
        x = QuantizedRows.alloc(c, c.const(most_rows), weight.group, lanes)
        rows = c.const(1) if most_rows == 1 else c.rows
        x.fill(c, rows, parallel=False)
        first = T.bind(task * share)
        count = T.bind(tirx.min(c.const(vectors) - first, c.const(share)))
        _Stretch(c, weight, x, rows, most_rows, first, count, share, lanes, vnni).run()


@dataclass(frozen=True)
class _Stretch:
    """One task: `count` vectors of words from `first` on, down all of k."""

    c: Contraction
    weight: AwqWeight
    x: QuantizedRows
    rows: ir.Expr
    most_rows: int
    first: ir.Expr
    count: ir.Expr
    share: int
    lanes: int
    vnni: bool

    def run(self) -> None:
        c, lanes, zero = self.c, self.lanes, self.c.const(0)
        total = T.alloc_buffer((self.most_rows, self.share * CODES, lanes), "float32")
        with T.serial(0, self.rows) as r, T.serial(0, self.count * CODES) as i:
            simd.store(total, [r, i, zero], simd.zeros("float32", lanes), lanes)
        with T.serial(0, c.const(c.k // self.x.block)) as b:
            if self.most_rows == 1:
                self._one_row(total, b)
            else:
                self._several_rows(total, b)
        self._store(total)

    def word(self, v: ir.Expr) -> ir.Expr:
        """First word of vector v; the last vector ends with the row and may overlap its left."""
        start = (self.first + v) * self.lanes
        return tirx.min(start, self.c.const(self.c.n // CODES - self.lanes))

    def _codes(self, k: ir.Expr, at: ir.Expr) -> list[ir.Expr]:
        """The nibbles of rows k and k + 1 from word `at` on, as pairs."""
        even = T.bind(simd.load(self.weight.words, [k, at], self.lanes))
        odd = T.bind(simd.load(self.weight.words, [k + 1, at], self.lanes))
        return simd.nibble_pairs(even, odd, self.lanes)

    def _one_row(self, total: ir.Var, b: ir.Expr) -> None:
        """One block of k, 8 rows of words at a time, the integer sums in a buffer."""
        c, lanes, zero = self.c, self.lanes, self.c.const(0)
        acc = T.alloc_buffer((self.share * CODES, lanes), "int32")
        with T.serial(0, self.count * CODES) as i:
            simd.store(acc, [i, zero], simd.zeros("int32", lanes), lanes)
        with T.serial(0, c.const(self.x.block // DEEP)) as j:
            k0 = T.bind(b * self.x.block + j * DEEP)
            pairs = [T.bind(self.x.pair(zero, k0 + 2 * p)) for p in range(DEEP // 2)]
            with T.serial(0, self.count) as v:
                at = T.bind(self.word(v))
                self._ahead(k0 + DEEP, at)
                where = [[v * CODES + i, zero] for i in range(CODES)]
                sums = [T.bind(simd.load(acc, place, lanes)) for place in where]
                for p, x in enumerate(pairs):
                    for i, codes in enumerate(self._codes(k0 + 2 * p, at)):
                        sums[i] = T.bind(simd.dot_pairs(sums[i], codes, x, lanes, self.vnni))
                for place, value in zip(where, sums, strict=True):
                    simd.store(acc, place, value, lanes)
        with T.serial(0, self.count) as v:
            scale = self._group(b, v)
            scale(total, zero, [simd.load(acc, [v * CODES + i, zero], lanes) for i in range(CODES)])

    def _several_rows(self, total: ir.Var, b: ir.Expr) -> None:
        """One block of k, unpacked for one vector of words, then tiles of rows in registers."""
        c, lanes, zero = self.c, self.lanes, self.c.const(0)
        half, tile = self.x.block // 2, TILE if lanes == 16 else 1
        unpacked = T.alloc_buffer((half * CODES, lanes), "int32")
        with T.serial(0, self.count) as v:
            at = T.bind(self.word(v))
            with T.serial(0, c.const(half)) as p:
                k = T.bind(b * self.x.block + 2 * p)
                self._ahead_in_order(b + 1, v * self.x.block + p * 2)
                for i, codes in enumerate(self._codes(k, at)):
                    simd.store(unpacked, [p * CODES + i, zero], codes, lanes)
            scale = self._group(b, v)
            with T.serial(0, simd.ceil_div(self.rows, tile)) as t:
                rows = [T.bind(tirx.min(t * tile + r, self.rows - 1)) for r in range(tile)]
                acc = self._row_tile(unpacked, b, rows)
                for r in range(tile):
                    with T.If(t * tile + r < self.rows), T.Then():
                        scale(total, rows[r], [acc.get(r, i) for i in range(CODES)])

    def _row_tile(self, unpacked: ir.Var, b: ir.Expr, rows: list[ir.Expr]) -> simd.Registers:
        half = self.x.block // 2
        acc = simd.Registers(len(rows), CODES, self.lanes, "int32")
        acc.clear()
        with T.serial(0, self.c.const(half)) as p:
            k = T.bind((b * half + p) * 2)
            xs = [T.bind(self.x.pair(r, k)) for r in rows]
            for i in range(CODES):
                at = [p * CODES + i, self.c.const(0)]
                codes = T.bind(simd.load(unpacked, at, self.lanes))
                for r, x in enumerate(xs):
                    value = simd.dot_pairs(acc.get(r, i), codes, x, self.lanes, self.vnni)
                    acc.set(r, i, value)
        return acc

    def _ahead(self, k: ir.Expr, at: ir.Expr) -> None:
        """Prefetch the words of rows k ... k + DEEP - 1, read in the stretch's next round."""
        for i in range(DEEP):
            self._prefetch(k + i, at)

    def _ahead_in_order(self, b: ir.Expr, line: ir.Expr) -> None:
        """Prefetch lines `line` and `line + 1` of block b, counted along the rows of words.

        The unpacking walks down the rows one vector wide; memory wants to be read along them.
        """
        for i in range(2):
            here = T.bind(line + i)
            self._prefetch(b * self.x.block + here // self.share, self.word(here % self.share))

    def _prefetch(self, k: ir.Expr, at: ir.Expr) -> None:
        row = tirx.min(k, self.c.const(self.c.k - 1))
        simd.prefetch(self.weight.words, [row, at])

    def _group(self, b: ir.Expr, v: ir.Expr) -> Callable[[ir.Var, ir.Expr, list[ir.Expr]], None]:
        """Read zeros and scales of a block; hand out `total[r] += s * sx * (acc - z * sum(xq))`."""
        w, lanes, zero = self.weight, self.lanes, self.c.const(0)
        g = T.bind(b * self.x.block // w.group)
        n0 = T.bind(self.word(v) * CODES)
        points = [n0 + i * lanes for i in range(CODES)]
        codes = [T.bind(w.codes(w.zeros, g, n, lanes)) for n in points]
        scales = [T.bind(w.scale(g, n, lanes)) for n in points]

        def scale(total: ir.Var, r: ir.Expr, planes: list[ir.Expr]) -> None:
            sx = T.bind(simd.splat(self.x.scale(r, b), lanes))
            sum_x = T.bind(simd.splat(self.x.total(r, b), lanes))
            for i, plane in enumerate(simd.interleave(w.planes(planes, lanes), lanes)):
                exact = (plane - codes[i] * sum_x).astype(f"float32x{lanes}")
                at = [r, v * CODES + i, zero]
                old = simd.load(total, at, lanes)
                simd.store(total, at, simd.fma(exact, scales[i] * sx, old, lanes), lanes)

        return scale

    def _store(self, total: ir.Var) -> None:
        c, lanes = self.c, self.lanes
        with T.serial(0, self.rows) as r, T.serial(0, self.count) as v:
            n0 = T.bind(self.word(v) * CODES)
            with T.serial(0, c.const(CODES)) as i, T.vectorized(0, c.const(lanes)) as lane:
                value = tirx.BufferLoad(total, [r, v * CODES + i, lane])
                c.put(r, n0 + i * lanes + lane, value)

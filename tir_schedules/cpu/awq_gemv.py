"""Linear layer over one row (decode) with AutoAWQ words: stream the words once, in int16.

The codes are integers, so the sum over one group of k can be exact integers too:

    x[k] = sx * xq[k]                   xq int16, one float32 sx per row and block of k
    sum_k W[n, k] x[k] = s[n] * sx * (sum_k q[n, k] xq[k] - z[n] * sum_k xq[k])

Rounding x to 16 bits relative to the block's largest |x| is the only error: at most 2^-16 of it,
nearer than float16 for all but values far below the largest. Integer pairs cost a third of the
instructions of dequantizing to float32: two rows of words are woven into one vector that has
k in its low and k + 1 in its high halves, then each nibble is one mask and one multiply-add of
pairs (vpdpwssd with VNNI, vpmaddwd and an add elsewhere), with one shift for every two nibbles:

    low[c]  = (w[k, c] & 0xffff) | (w[k + 1, c] << 16)      nibbles at shifts 0 4 8 12
    high[c] = (w[k, c] >> 16) | (w[k + 1, c] & 0xffff0000)  nibbles at shifts 16 20 24 28

Order of the loops: a wide stretch of words of 8 rows of k at a time, because walking down k in
one narrow column of words jumps a whole row per step and reads at a quarter of the speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, tirx
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .awq import CODES, AwqWeight
from .int16_rows import QuantizedRows

BLOCK = 8  # rows of k between two visits of an accumulator
STRETCH = 32  # vectors of words in one task: accumulators stay in the first-level cache


def applies(c: Contraction, weight: AwqWeight, target: Target, lanes: int) -> bool:
    """True where the kernel fits: whole blocks of k, at least one vector of words, x86."""
    pairs = simd.has(target, "avx512bw" if lanes == 16 else "avx2")
    wide = c.n // CODES >= lanes
    even = weight.group % BLOCK == 0 and sorted(weight.shifts) == list(range(0, 32, 4))
    return wide and even and pairs


def emit_awq_gemv(c: Contraction, weight: AwqWeight, target: Target, lanes: int) -> None:
    """Emit the layer for one row at the builder's current place."""
    vectors = -(-c.n // CODES // lanes)
    tasks = simd.tasks(target, vectors, c.n * c.k // 2)
    share = min(STRETCH, -(-vectors // tasks))
    tasks = -(-vectors // share)
    with simd.loop(tasks > 1, c.const(tasks)) as task:
        x = QuantizedRows.emit(c, c.const(0), 1, weight.group, lanes)
        first = T.bind(task * share)
        count = T.bind(tirx.min(c.const(vectors) - first, c.const(share)))
        vnni = lanes == 16 and simd.has(target, "avx512vnni")
        _Stretch(c, weight, x, first, count, share, lanes, vnni).run()


@dataclass(frozen=True)
class _Stretch:
    """One task: `count` vectors of words from `first` on, down all of k."""

    c: Contraction
    weight: AwqWeight
    x: QuantizedRows
    first: ir.Expr
    count: ir.Expr
    share: int
    lanes: int
    vnni: bool

    def run(self) -> None:
        c, lanes = self.c, self.lanes
        acc = T.alloc_buffer((self.share * CODES, lanes), "int32")
        total = T.alloc_buffer((self.share * CODES, lanes), "float32")
        with T.serial(0, self.count * CODES) as i:
            simd.store(total, [i, c.const(0)], simd.zeros("float32", lanes), lanes)
        with T.serial(0, c.const(c.k // self.x.block)) as b:
            with T.serial(0, self.count * CODES) as i:
                simd.store(acc, [i, c.const(0)], simd.zeros("int32", lanes), lanes)
            with T.serial(0, c.const(self.x.block // BLOCK)) as j:
                k0 = T.bind(b * self.x.block + j * BLOCK)
                pairs = [T.bind(self.x.pair(c.const(0), k0 + 2 * p)) for p in range(BLOCK // 2)]
                with T.serial(0, self.count) as v:
                    self._products(acc, k0, v, pairs)
            with T.serial(0, self.count) as v:
                self._scale(acc, total, b, v)
        self._store(total)

    def word(self, v: ir.Expr) -> ir.Expr:
        """First word of vector v; the last vector ends with the row and may overlap its left."""
        start = (self.first + v) * self.lanes
        return tirx.min(start, self.c.const(self.c.n // CODES - self.lanes))

    def _products(self, acc: ir.Var, k0: ir.Expr, v: ir.Expr, pairs: list[ir.Expr]) -> None:
        c, lanes = self.c, self.lanes
        at = T.bind(self.word(v))
        sums = [simd.load(acc, [v * CODES + p, c.const(0)], lanes) for p in range(CODES)]
        sums = [T.bind(s) for s in sums]
        for p, x in enumerate(pairs):
            even = T.bind(simd.load(self.weight.words, [k0 + 2 * p, at], lanes))
            odd = T.bind(simd.load(self.weight.words, [k0 + 2 * p + 1, at], lanes))
            for i, codes in enumerate(simd.nibble_pairs(even, odd, lanes)):
                sums[i] = T.bind(simd.dot_pairs(sums[i], codes, x, lanes, self.vnni))
        for p in range(CODES):
            simd.store(acc, [v * CODES + p, c.const(0)], sums[p], lanes)

    def _scale(self, acc: ir.Var, total: ir.Var, b: ir.Expr, v: ir.Expr) -> None:
        """total += s * sx * (acc - z * sum(xq)), in natural order of the channels."""
        c, w, lanes = self.c, self.weight, self.lanes
        g = T.bind(b * self.x.block // w.group)
        planes = [self._plane(acc, v, shift // 4) for shift in w.shifts]
        n0 = T.bind(self.word(v) * CODES)
        sx, sum_x = self.x.scale(c.const(0), b), self.x.total(c.const(0), b)
        for i, plane in enumerate(simd.interleave(planes, lanes)):
            n = n0 + i * lanes
            zero = w.codes(w.zeros, g, n, lanes)
            exact = (plane - zero * simd.splat(sum_x, lanes)).astype(f"float32x{lanes}")
            scale = w.scale(g, n, lanes) * simd.splat(sx, lanes)
            at = [v * CODES + i, c.const(0)]
            simd.store(total, at, simd.fma(exact, scale, simd.load(total, at, lanes), lanes), lanes)

    def _plane(self, acc: ir.Var, v: ir.Expr, nibble: int) -> ir.Expr:
        """The sums of one nibble; those of odd nibbles are 16 times too large, exactly."""
        plane = simd.load(acc, [v * CODES + nibble, self.c.const(0)], self.lanes)
        return T.bind(plane >> simd.splat(tirx.IntImm("int32", 4 * (nibble % 2)), self.lanes))

    def _store(self, total: ir.Var) -> None:
        c, lanes = self.c, self.lanes
        with T.serial(0, self.count) as v:
            n0 = T.bind(self.word(v) * CODES)
            with T.serial(0, c.const(CODES)) as i, T.vectorized(0, c.const(lanes)) as lane:
                value = tirx.BufferLoad(total, [v * CODES + i, lane])
                c.put(c.const(0), n0 + i * lanes + lane, value)

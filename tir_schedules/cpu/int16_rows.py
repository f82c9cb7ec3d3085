"""Rows of x as int16 with one float32 scale per row and block of k.

    sx = max |x| / 32767 over the block,  xq = round(x / sx),  |x - sx * xq| <= max |x| / 65534

Two columns share one int32 word, as multiply-add instructions of pairs want them. Which two, and
in which order the pairs lie, is the weight layout's choice (a `Pairing`): sums do not care.
The sum of xq over the block is kept too: a weight's zero point multiplies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd

LARGEST = 32767.0
LONGEST = 256  # of a block: 256 * 32767 * 15 * 16 is still below 2^31


def block_of(group: int) -> int:
    """The longest block of at most LONGEST columns that divides a group."""
    return max(b for b in range(1, min(group, LONGEST) + 1) if group % b == 0)


Pairing = Sequence[tuple[int, int]]


def neighbours(lanes: int) -> Pairing:
    """(0, 1), (2, 3), ... of a run of 2 * lanes columns."""
    return [(2 * p, 2 * p + 1) for p in range(lanes)]


def word_halves(lanes: int) -> Pairing:
    """(8w + i, 8w + i + 4), word by word, of a run of 2 * lanes columns."""
    return [(8 * (p // 4) + p % 4, 8 * (p // 4) + p % 4 + 4) for p in range(lanes)]


def planes_of_halves(lanes: int) -> Pairing:
    """(8w + i, 8w + i + 4), all words for one i after another, of a run of 8 * lanes columns."""
    return [(8 * w + i, 8 * w + i + 4) for i in range(4) for w in range(lanes)]


@dataclass(frozen=True)
class QuantizedRows:
    """Buffers of one task: `pairs [rows, K / 2]`, `scales` and `totals [rows, K / block]`."""

    pairs: ir.Var
    scales: ir.Var
    totals: ir.Var
    block: int
    lanes: int
    pairing: Callable[[int], Pairing]

    @staticmethod
    def alloc(
        c: Contraction,
        rows: ir.Expr,
        group: int,
        lanes: int,
        pairing: Callable[[int], Pairing] = neighbours,
    ) -> QuantizedRows:
        """Buffers for `rows` rows at the builder's current place."""
        block = block_of(group)
        return QuantizedRows(
            T.alloc_buffer((rows, c.const(c.k // 2)), "int32"),
            T.alloc_buffer((rows, c.const(c.k // block)), "float32"),
            T.alloc_buffer((rows, c.const(c.k // block)), "int32"),
            block,
            lanes,
            pairing,
        )

    def fill(self, c: Contraction, rows: ir.Expr, parallel: bool) -> None:
        """Quantize x[0 ... rows - 1]."""
        with simd.loop(parallel, rows) as r:
            raw = T.alloc_buffer((self.block,), "float32")
            with T.serial(0, c.const(c.k // self.block)) as b:
                self._quantize(c, raw, r, b)

    def _quantize(self, c: Contraction, raw: ir.Var, r: ir.Expr, b: ir.Expr) -> None:
        lanes = min(self.lanes, self.block // 2)
        zero = tirx.IntImm("int32", 0)
        most = T.alloc_buffer((lanes,), "float32", scope="local")
        simd.store(most, [zero], simd.zeros("float32", lanes), lanes)
        with T.serial(0, c.const(self.block // lanes)) as i:
            with T.vectorized(0, c.const(lanes)) as lane:
                k = b * self.block + i * lanes + lane
                T.buffer_store(raw, c.x(r, k).astype("float32"), [i * lanes + lane])
            size = simd.absolute(simd.load(raw, [i * lanes], lanes), lanes)
            simd.store(most, [zero], tirx.max(simd.load(most, [zero], lanes), size), lanes)
        peak = T.bind(simd.across(tirx.max, simd.load(most, [zero], lanes), lanes))
        none = peak == tirx.FloatImm("float32", 0)
        one = tirx.FloatImm("float32", 1)
        scale = T.bind(tirx.Select(none, one, peak / tirx.FloatImm("float32", LARGEST)))
        T.buffer_store(self.scales, scale, [r, b])
        self._round(c, raw, r, b, T.bind(one / scale), lanes)

    def _round(
        self, c: Contraction, raw: ir.Var, r: ir.Expr, b: ir.Expr, inverse: ir.Expr, lanes: int
    ) -> None:
        zero = tirx.IntImm("int32", 0)
        total = T.alloc_buffer((lanes,), "int32", scope="local")
        simd.store(total, [zero], simd.zeros("int32", lanes), lanes)
        pairing = self.pairing(lanes)
        run = 2 * len(pairing)
        with T.serial(0, c.const(self.block // run)) as i:
            factor = simd.splat(inverse, lanes)
            starts = [i * run + v for v in range(0, run, lanes)]
            whole = [
                T.bind(simd.to_int(simd.load(raw, [at], lanes) * factor, lanes)) for at in starts
            ]
            first = b * (self.block // 2) + i * (run // 2)
            for p in range(0, run // 2, lanes):
                low = simd.shuffle(whole, [pair[0] for pair in pairing[p : p + lanes]])
                high = simd.shuffle(whole, [pair[1] for pair in pairing[p : p + lanes]])
                simd.store(self.pairs, [r, first + p], simd.pair_of(low, high, lanes), lanes)
            for part in whole:
                simd.store(total, [zero], simd.load(total, [zero], lanes) + part, lanes)
        add = simd.across(lambda a, b: a + b, simd.load(total, [zero], lanes), lanes)
        T.buffer_store(self.totals, add, [r, b])

    def pair(self, r: ir.Expr, k: ir.Expr) -> ir.Expr:
        """Pair k / 2 in every lane; k is even."""
        return simd.splat(tirx.BufferLoad(self.pairs, [r, k // 2]), self.lanes)

    def scale(self, r: ir.Expr, b: ir.Expr) -> ir.Expr:
        """sx of block b."""
        return tirx.BufferLoad(self.scales, [r, b])

    def total(self, r: ir.Expr, b: ir.Expr) -> ir.Expr:
        """Sum of xq over block b."""
        return tirx.BufferLoad(self.totals, [r, b])

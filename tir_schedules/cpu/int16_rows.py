"""Rows of x as int16 with one float32 scale per row and block of k.

    sx = max |x| / 32639 over the block,  xq = round(x / sx),  |x - sx * xq| <= max |x| / 65278

Kept as the multiply-add instructions want them; sums do not care about the order:

    PairRows    int32 words of two int16 (vpmaddwd, vpdpwssd). Which two, and in which order the
                pairs lie, is the weight layout's choice (a `Pairing`).
    DigitRows   bytes (vpdpbusd): xq = 256 * high + low with both in [-128, 127]; the two sums of
                byte products give the very same integer as the pairs.

The sum of xq over the block is kept too: a weight's zero point multiplies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd

LARGEST = 127.0 * 256 + 127  # both digits fit a byte
LONGEST = 256  # of a block: 256 * LARGEST * 15 * 16 is still below 2^31
STEP = 16  # blocks are whole multiples of this many columns


def block_of(group: int) -> int:
    """The longest block of at most LONGEST columns that divides a group of whole STEPs."""
    return max(b for b in range(STEP, min(group, LONGEST) + 1, STEP) if group % b == 0)


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
    """Buffers of one task: `scales` and `totals` `[rows, K / block]`, values in a subclass."""

    scales: ir.Var
    totals: ir.Var
    block: int
    lanes: int

    def run(self, lanes: int) -> int:
        """Columns that are kept together when vectors of `lanes` are rounded."""
        raise NotImplementedError

    def keep(self, r: ir.Expr, k: ir.Expr, whole: list[ir.Expr], lanes: int) -> None:
        """Store one run of xq, int32 lanes in natural order, from column k on."""
        raise NotImplementedError

    def operands(self, r: ir.Expr, k: ir.Expr) -> list[ir.Expr]:
        """x[r] from column k on in every lane, digit by digit."""
        raise NotImplementedError

    def fill(self, c: Contraction, rows: ir.Expr, parallel: bool) -> None:
        """Quantize x[0 ... rows - 1]."""
        with simd.loop(parallel, rows) as r:
            self._blocks(c, r, c.const(0), c.const(c.k // self.block))

    def fill_blocks(self, c: Contraction, rows: ir.Expr, first: ir.Expr, count: ir.Expr) -> None:
        """Quantize `count` blocks of k from `first` on of x[0 ... rows - 1]."""
        with T.serial(0, rows) as r:
            self._blocks(c, r, first, count)

    def _blocks(self, c: Contraction, r: ir.Expr, first: ir.Expr, count: ir.Expr) -> None:
        raw = T.alloc_buffer((self.block,), "float32")
        with T.serial(0, count) as i:
            self._quantize(c, raw, r, T.bind(first + i))

    def _quantize(self, c: Contraction, raw: ir.Var, r: ir.Expr, b: ir.Expr) -> None:
        lanes = self.lanes if self.block % self.run(self.lanes) == 0 else self.lanes // 2
        zero = tirx.IntImm("int32", 0)
        most = T.alloc_buffer((lanes,), "float32")
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
        total = T.alloc_buffer((lanes,), "int32")
        simd.store(total, [zero], simd.zeros("int32", lanes), lanes)
        run = self.run(lanes)
        with T.serial(0, c.const(self.block // run)) as i:
            factor = simd.splat(inverse, lanes)
            starts = [i * run + v for v in range(0, run, lanes)]
            whole = [
                T.bind(simd.to_int(simd.load(raw, [at], lanes) * factor, lanes)) for at in starts
            ]
            self.keep(r, T.bind(b * self.block + i * run), whole, lanes)
            for part in whole:
                simd.store(total, [zero], simd.load(total, [zero], lanes) + part, lanes)
        add = simd.across(lambda a, b: a + b, simd.load(total, [zero], lanes), lanes)
        T.buffer_store(self.totals, add, [r, b])

    def scale(self, r: ir.Expr, b: ir.Expr) -> ir.Expr:
        """sx of block b."""
        return tirx.BufferLoad(self.scales, [r, b])

    def total(self, r: ir.Expr, b: ir.Expr) -> ir.Expr:
        """Sum of xq over block b."""
        return tirx.BufferLoad(self.totals, [r, b])


@dataclass(frozen=True)
class PairRows(QuantizedRows):
    """`pairs [rows, K / 2]`."""

    pairs: ir.Var
    pairing: Callable[[int], Pairing]

    @staticmethod
    def alloc(
        c: Contraction,
        rows: ir.Expr,
        group: int,
        lanes: int,
        pairing: Callable[[int], Pairing] = neighbours,
    ) -> PairRows:
        """Buffers for `rows` rows at the builder's current place."""
        pairs = T.alloc_buffer((rows, c.const(c.k // 2)), "int32")
        block, sums = _sums(c, rows, group)
        return PairRows(*sums, block, lanes, pairs, pairing)

    def run(self, lanes: int) -> int:
        """All columns of one pairing."""
        return 2 * len(self.pairing(lanes))

    def keep(self, r: ir.Expr, k: ir.Expr, whole: list[ir.Expr], lanes: int) -> None:
        """Pairs in the pairing's order."""
        pairing = self.pairing(lanes)
        for p in range(0, len(pairing), lanes):
            low = simd.shuffle(whole, [pair[0] for pair in pairing[p : p + lanes]])
            high = simd.shuffle(whole, [pair[1] for pair in pairing[p : p + lanes]])
            simd.store(self.pairs, [r, k // 2 + p], simd.pair_of(low, high, lanes), lanes)

    def operands(self, r: ir.Expr, k: ir.Expr) -> list[ir.Expr]:
        """One pair."""
        return [self.pair(r, k)]

    def pair(self, r: ir.Expr, k: ir.Expr) -> ir.Expr:
        """Pair k / 2 in every lane; k is even."""
        return simd.splat(tirx.BufferLoad(self.pairs, [r, k // 2]), self.lanes)


@dataclass(frozen=True)
class DigitRows(QuantizedRows):
    """`high` and `low` int8 `[rows, K]`."""

    high: ir.Var
    low: ir.Var

    @staticmethod
    def alloc(c: Contraction, rows: ir.Expr, group: int, lanes: int) -> DigitRows:
        """Buffers for `rows` rows at the builder's current place."""
        high, low = (T.alloc_buffer((rows, c.const(c.k)), "int8") for _ in range(2))
        block, sums = _sums(c, rows, group)
        return DigitRows(*sums, block, lanes, high, low)

    def run(self, lanes: int) -> int:
        """One vector."""
        return lanes

    def keep(self, r: ir.Expr, k: ir.Expr, whole: list[ir.Expr], lanes: int) -> None:
        """The nearest multiple of 256, and what is left."""
        half, byte = (simd.splat(tirx.IntImm("int32", i), lanes) for i in (128, 8))
        high = T.bind((whole[0] + half) >> byte)
        simd.store(self.high, [r, k], high.astype(f"int8x{lanes}"), lanes)
        low = whole[0] - (high << byte)
        simd.store(self.low, [r, k], low.astype(f"int8x{lanes}"), lanes)

    def operands(self, r: ir.Expr, k: ir.Expr) -> list[ir.Expr]:
        """High and low digits of four columns."""
        words = [tirx.reinterpret("int32", simd.load(d, [r, k], 4)) for d in (self.high, self.low)]
        return [simd.splat(word, self.lanes) for word in words]


def _sums(c: Contraction, rows: ir.Expr, group: int) -> tuple[int, tuple[ir.Var, ir.Var]]:
    """The block, and buffers for scales and totals."""
    block = block_of(group)
    scales, totals = (
        T.alloc_buffer((rows, c.const(c.k // block)), dtype) for dtype in ("float32", "int32")
    )
    return block, (scales, totals)

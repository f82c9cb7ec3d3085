"""Rows of AutoAWQ words woven together, so that one instruction multiplies several k at once.

A word holds eight channels of ONE k, multiply-add instructions sum over neighbours in k: rows of
words must be interleaved first, in registers.

`Pairs` (vpmaddwd): two rows k and k + 1 become int16 pairs, 25 instructions for 128
bytes of words:

    low[c]  = (w[k, c] & 0xffff) | (w[k + 1, c] << 16)      nibbles at shifts 0 4 8 12
    high[c] = (w[k, c] >> 16) | (w[k + 1, c] & 0xffff0000)  nibbles at shifts 16 20 24 28

`Quads` (vpdpbusd): the bytes of four rows are transposed by eight unpack instructions, then one
mask per nibble makes four codes of one channel a uint8 quad. x comes in two int8 digits, so each
quad is multiplied twice; 32 instructions for 256 bytes of words, and the same exact integers:

    sum_k q[k] xq[k] = 256 * sum_k q[k] high[k] + sum_k q[k] low[k]

Vector v of the transposed bytes holds, in 128-bit lane L, the four bytes of word 4L + v: its low
nibbles are `planes[2v]`, its high ones (times 16) `planes[2v + 1]`. `natural` puts the sums back
in channel order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .awq import CODES, AwqWeight
from .int16_rows import DigitRows, PairRows
from .vector_unit import VectorUnit

Sums = list[ir.Expr]  # one int32 vector for every digit of x
LANE = 4  # int32 in 128 bits


@dataclass(frozen=True)
class Pairs:
    """Two rows, one digit of 16 bits.

    `step`: rows of words that are multiplied at once. `digits`: sums that make one product; the
    planes come in as many parts.
    """

    weight: AwqWeight
    lanes: int
    step: int = 2
    digits: int = 1
    instruction: str = "vpmaddwd"

    def rows(self, c: Contraction, most: int) -> PairRows:
        """Buffers for x: int16 pairs of neighbours."""
        return PairRows.alloc(c, c.const(most), self.weight.group, self.lanes)

    def planes(self, k: ir.Expr, word: ir.Expr) -> list[ir.Expr]:
        """Codes of rows k and k + 1, nibble by nibble; odd ones times 16."""
        words = self.weight.words
        even, odd = (T.bind(simd.load(words, [k + i, word], self.lanes)) for i in range(2))
        return simd.nibble_pairs(even, odd, self.lanes)

    def dot(self, sums: Sums, codes: ir.Expr, x: Sequence[ir.Expr]) -> Sums:
        """sums + codes * x: two products a lane."""
        return [T.bind(simd.dot_pairs(sums[0], codes, x[0], self.lanes, vnni=False))]

    def merge(self, sums: Sums) -> ir.Expr:
        """The digits' sums as one: there is one."""
        return sums[0]

    def natural(self, planes: list[ir.Expr], part: int) -> list[tuple[int, ir.Expr]]:
        """Sums of one part of the planes as (m, channel vector m of the vector of words): all."""
        vectors = simd.interleave(self.weight.planes(planes, self.lanes), self.lanes)
        return list(enumerate(vectors))


@dataclass(frozen=True)
class Quads:
    """Four rows, two digits of 8 bits."""

    weight: AwqWeight
    lanes: int
    step: int = 4
    digits: int = 2
    instruction: str = "vpdpbusd"

    def rows(self, c: Contraction, most: int) -> DigitRows:
        """Buffers for x: two arrays of bytes."""
        return DigitRows.alloc(c, c.const(most), self.weight.group, self.lanes)

    def planes(self, k: ir.Expr, word: ir.Expr) -> list[ir.Expr]:
        """Codes of rows k ... k + 3, by transposed vectors, low nibbles before high ones."""
        rows = [T.bind(simd.load(self.weight.words, [k + i, word], self.lanes)) for i in range(4)]
        masks = [simd.splat(tirx.IntImm("uint32", m), self.lanes) for m in (0x0F0F0F0F, 0xF0F0F0F0)]
        return [
            T.bind((bytes_ & mask).astype(f"int32x{self.lanes}"))
            for bytes_ in simd.transpose_bytes(rows, self.lanes)
            for mask in masks
        ]

    def dot(self, sums: Sums, codes: ir.Expr, x: Sequence[ir.Expr]) -> Sums:
        """sums + codes * x, digit by digit: four products a lane."""
        return [
            T.bind(simd.dot_quads(total, codes, digit, self.lanes))
            for total, digit in zip(sums, x, strict=True)
        ]

    def merge(self, sums: Sums) -> ir.Expr:
        """256 * high + low."""
        return (sums[0] << simd.splat(tirx.IntImm("int32", 8), self.lanes)) + sums[1]

    def natural(self, planes: list[ir.Expr], part: int) -> list[tuple[int, ir.Expr]]:
        """Planes of the transposed vectors 2 * part and 2 * part + 1, words v and v + 1 of each
        128-bit lane L, give the channel vectors m = 2L + part."""
        four = simd.splat(tirx.IntImm("int32", 4), self.lanes)
        low0, high0, low1, high1 = (T.bind(p >> four) if i % 2 else p for i, p in enumerate(planes))
        nibbles = [shift // 4 for shift in self.weight.shifts]
        pick = [n // 2 + self.lanes * (n % 2) for n in nibbles]
        out = []
        for lane in range(0, self.lanes // LANE, 2):
            two = [LANE * here + i for here in (lane, lane + 1) for i in pick]
            first, second = (
                T.bind(simd.shuffle(pair, two)) for pair in ((low0, high0), (low1, high1))
            )
            for half in range(2):
                own = range(half * CODES, (half + 1) * CODES)
                both = [*own, *(self.lanes + i for i in own)]
                out.append((2 * (lane + half) + part, T.bind(simd.shuffle([first, second], both))))
        return out


Weave = Pairs | Quads


def choose(weight: AwqWeight, unit: VectorUnit) -> Weave:
    """The best that the target can do; `Quads.natural` knows 16 lanes only."""
    return (Quads if unit.vnni and unit.lanes == 16 else Pairs)(weight, unit.lanes)

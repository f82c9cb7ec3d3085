"""Rows of x as int16 with one float32 scale per row and block of k.

    sx = max |x| / 32767 over the block,  xq = round(x / sx),  |x - sx * xq| <= max |x| / 65534

Two neighbours (k, k + 1) share one int32 word, as multiply-add instructions of pairs want them.
The sum of xq over the block is kept too: a weight's zero point multiplies it.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class QuantizedRows:
    """Buffers of one task: `pairs [rows, K / 2]`, `scales` and `totals [rows, K / block]`."""

    pairs: ir.Var
    scales: ir.Var
    totals: ir.Var
    block: int
    lanes: int

    @staticmethod
    def alloc(c: Contraction, rows: ir.Expr, group: int, lanes: int) -> QuantizedRows:
        """Buffers for `rows` rows at the builder's current place."""
        block = block_of(group)
        return QuantizedRows(
            T.alloc_buffer((rows, c.const(c.k // 2)), "int32"),
            T.alloc_buffer((rows, c.const(c.k // block)), "float32"),
            T.alloc_buffer((rows, c.const(c.k // block)), "int32"),
            block,
            lanes,
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
        with T.serial(0, c.const(self.block // (2 * lanes))) as i:
            at = i * 2 * lanes
            halves = [
                T.bind(
                    simd.to_int(
                        simd.load(raw, [at + h * lanes], lanes) * simd.splat(inverse, lanes), lanes
                    )
                )
                for h in range(2)
            ]
            even = T.bind(simd.shuffle(halves, range(0, 2 * lanes, 2)))
            odd = T.bind(simd.shuffle(halves, range(1, 2 * lanes, 2)))
            low = simd.splat(tirx.IntImm("int32", 0xFFFF), lanes)
            sixteen = simd.splat(tirx.IntImm("int32", 16), lanes)
            pair = (even & low) | (odd << sixteen)
            simd.store(self.pairs, [r, b * (self.block // 2) + i * lanes], pair, lanes)
            simd.store(total, [zero], simd.load(total, [zero], lanes) + even + odd, lanes)
        add = simd.across(lambda a, b: a + b, simd.load(total, [zero], lanes), lanes)
        T.buffer_store(self.totals, add, [r, b])

    def pair(self, r: ir.Expr, k: ir.Expr) -> ir.Expr:
        """xq of columns (k, k + 1) in every lane; k is even."""
        return simd.splat(tirx.BufferLoad(self.pairs, [r, k // 2]), self.lanes)

    def scale(self, r: ir.Expr, b: ir.Expr) -> ir.Expr:
        """sx of block b."""
        return tirx.BufferLoad(self.scales, [r, b])

    def total(self, r: ir.Expr, b: ir.Expr) -> ir.Expr:
        """Sum of xq over block b."""
        return tirx.BufferLoad(self.totals, [r, b])

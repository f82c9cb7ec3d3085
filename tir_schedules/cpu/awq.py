"""What the CPU kernels ask of AutoAWQ's 4-bit weights (layout: `tir_schedules/awq_weight.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..awq_weight import CODES, AwqLayout, group_size
from . import simd
from .int16_rows import Pairing, neighbours
from .vector_unit import VectorUnit

__all__ = ["CODES", "AwqWeight", "group_size"]


@dataclass(frozen=True)
class AwqWeight(AwqLayout):
    """Panels, pairs and vectors of the layout's codes."""

    name: ClassVar[str] = "AutoAWQ words"

    @property
    def k_step(self) -> int:
        """Panels must begin and end at a multiple of this many input columns."""
        return self.group

    def against(self, unit: VectorUnit) -> tuple[str, ...]:
        """Float kernels run anywhere."""
        return ()

    def pack(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None:
        """Fill `panel[depth, width]` with W[n0 + j, k0 + i]; columns past n repeat the last."""
        index = str(n0.ty)
        run = min(self.group, depth)
        parts, runs = tirx.IntImm(index, width // lanes), tirx.IntImm(index, depth // run)
        with T.serial(0, parts) as part, T.serial(0, runs) as r:
            g = T.bind((k0 + r * run) // self.group)
            n = n0 + part * lanes
            zero = T.bind(self.codes(self.zeros, g, n, lanes))
            scale = T.bind(self.scale(g, n, lanes))
            with T.serial(0, tirx.IntImm(index, run)) as i:
                code = self.codes(self.words, k0 + r * run + i, n, lanes)
                value = (code - zero).astype(f"float32x{lanes}") * scale
                simd.store(panel, [r * run + i, part * lanes], value, lanes)

    def pairing(self, lanes: int) -> Pairing:
        """Rows k and k + 1 of words are woven."""
        return neighbours(lanes)

    def pack_pairs(
        self,
        panel: ir.Var,
        scales: ir.Var,
        n0: ir.Expr,
        k0: ir.Expr,
        depth: int,
        block: int,
        lanes: int,
    ) -> None:
        """Fill `panel[depth / 2, 8 * lanes]` with pairs of q - z, in natural order of n, and
        `scales[depth / block, 8 * lanes]`."""
        index, half = str(n0.ty), block // 2
        word = T.bind(n0 // CODES)
        with T.serial(0, tirx.IntImm(index, depth // block)) as b:
            k = T.bind(k0 + b * block)
            g = T.bind(k // self.group)
            zeros = []
            for i in range(CODES):
                n = n0 + i * lanes
                at = [b, tirx.IntImm(index, i * lanes)]
                simd.store(scales, at, self.scale(g, n, lanes), lanes)
                zeros.append(T.bind(simd.twice(self.codes(self.zeros, g, n, lanes), lanes)))
            with T.serial(0, tirx.IntImm(index, half)) as p:
                even = T.bind(simd.load(self.words, [k + 2 * p, word], lanes))
                odd = T.bind(simd.load(self.words, [k + 2 * p + 1, word], lanes))
                planes = self.planes(simd.nibble_pairs(even, odd, lanes), lanes)
                for i, codes in enumerate(simd.interleave(planes, lanes)):
                    value = simd.subtract_pairs(codes, zeros[i], lanes)
                    at = [b * half + p, tirx.IntImm(index, i * lanes)]
                    simd.store(panel, at, value, lanes)

    def planes(self, nibbles: list[ir.Expr], lanes: int) -> list[ir.Expr]:
        """Nibbles (or their sums) in channel order; odd ones come times 16, exactly."""
        shift = [simd.splat(tirx.IntImm("int32", 4 * (i % 2)), lanes) for i in range(CODES)]
        return [T.bind(nibbles[s // 4] >> shift[s // 4]) for s in self.shifts]

    def codes(self, words: ir.Var, row: ir.Expr, n: ir.Expr, lanes: int) -> ir.Expr:
        """Codes of channels n ... n + lanes - 1 as int32 lanes, in natural order."""
        last = tirx.IntImm(str(n.ty), self.n // CODES - 1)
        parts = max(1, lanes // CODES)
        word = [
            simd.splat(tirx.BufferLoad(words, [row, tirx.min(n // CODES + p, last)]), lanes)
            for p in range(parts)
        ]
        vector = word[0]
        for p in range(1, parts):
            pick = [lane if lane // CODES < p else lanes + lane for lane in range(lanes)]
            vector = simd.shuffle([vector, word[p]], pick)
        shift = _constant([self.shifts[lane % CODES] for lane in range(lanes)], "uint32")
        mask = simd.splat(tirx.IntImm("uint32", 15), lanes)
        return ((vector >> shift) & mask).astype(f"int32x{lanes}")

    def scale(self, g: ir.Expr, n: ir.Expr, lanes: int) -> ir.Expr:
        """Scales of channels n ... n + lanes - 1 as float32."""
        half = min(lanes, CODES)
        last = tirx.IntImm(str(n.ty), self.n - half)
        starts = [tirx.min(n + p, last) for p in range(0, lanes, half)]
        parts = [simd.widen(simd.load(self.scales, [g, at], half), half) for at in starts]
        return parts[0] if len(parts) == 1 else simd.shuffle(parts, range(lanes))


def _constant(values: list[int], dtype: str) -> ir.Expr:
    return simd.shuffle([tirx.IntImm(dtype, v) for v in values], range(len(values)))

"""AutoAWQ's 4-bit weights: `W[n, k] = (q[k, n] - z[k // G, n]) * s[k // G, n]`.

`qweight` is uint32 `[K, N / 8]`: one word holds eight output channels of one input channel, so a
row of words streams along n. `qzeros` is `[K / G, N / 8]` in the same packing and `scales` is
float `[K / G, N]`. Which nibble holds which channel is read from the function itself by setting
n to 8c + 0 ... 8c + 7, so every nibble order works (AutoAWQ's, in shifts, is 0 16 4 20 8 24 12 28).
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, sym, tirx
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..expression import rebuild, strip_casts
from . import simd
from .int16_rows import Pairing, neighbours

CODES = 8  # 4-bit codes in one word


@dataclass(frozen=True)
class AwqWeight:
    """The three buffers of one layer; `shifts[i]` finds channel 8c + i in word c."""

    words: ir.Var
    zeros: ir.Var
    scales: ir.Var
    group: int
    n: int
    k: int
    shifts: tuple[int, ...]

    @property
    def k_step(self) -> int:
        """Panels must begin and end at a multiple of this many input columns."""
        return self.group

    @staticmethod
    def match(c: Contraction) -> AwqWeight | None:
        """Recognise `(q - z) * s` over words that hold eight channels each."""
        e = c.weight
        if not isinstance(e, prim.Mul) or c.n % CODES:
            return None
        for difference, scale in ((e.a, e.b), (e.b, e.a)):
            difference, scale = strip_casts(difference), strip_casts(scale)
            if isinstance(difference, prim.Sub) and isinstance(scale, TensorLoad):
                return _match(c, strip_casts(difference.a), strip_casts(difference.b), scale)
        return None

    def fits(self, target: Target, lanes: int) -> bool:
        """Float kernels run anywhere."""
        return True

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


def _match(c: Contraction, code: ir.Expr, zero: ir.Expr, scale: TensorLoad) -> AwqWeight | None:
    words, shifts = _unpacked(c, code)
    zeros, zero_shifts = _unpacked(c, zero)
    if words is None or zeros is None or shifts != zero_shifts:
        return None
    k, row = c.k_var, scale.indices[0]
    if not words.indices[0].same_as(k):
        return None
    group = group_size(row, k, c.k)
    same_row = sym.Analyzer().can_prove_equal(zeros.indices[0], row)
    if group is None or not same_row or not scale.indices[1].same_as(c.n_var):
        return None
    return AwqWeight(words.source, zeros.source, scale.source, group, c.n, c.k, shifts)


def group_size(row: ir.Expr, k: ir.Var, depth: int) -> int | None:
    """G of `k // G`; an index that is always 0 is one group for all of k."""
    if isinstance(row, prim.FloorDiv) and row.a.same_as(k) and depth % row.b.value == 0:
        return int(row.b.value)
    return depth if isinstance(row, tirx.IntImm) and row.value == 0 else None


def _unpacked(c: Contraction, e: ir.Expr) -> tuple[TensorLoad | None, tuple[int, ...]]:
    """The word and the eight shifts of `(word >> shift) & 15`."""
    if not isinstance(e, prim.BitwiseAnd) or getattr(e.b, "value", None) != 15:
        return None, ()
    shifted = strip_casts(e.a)
    if not isinstance(shifted, prim.RShift) or not isinstance(shifted.a, TensorLoad):
        return None, ()
    analyzer, column = sym.Analyzer(), tirx.Var("column", c.n_var.ty)
    analyzer.bind(column, ir.Range(0, c.n // CODES))
    shifts = []
    for i in range(CODES):
        point = {c.n_var: column * CODES + i}
        where = analyzer.simplify(rebuild(shifted.a.indices[1], point))
        shift = analyzer.simplify(rebuild(strip_casts(shifted.b), point))
        if not analyzer.can_prove_equal(where, column) or not isinstance(shift, tirx.IntImm):
            return None, ()
        shifts.append(shift.value)
    return (shifted.a, tuple(shifts)) if str(shifted.a.ty) == "uint32" else (None, ())

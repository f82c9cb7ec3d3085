"""MLC's symmetric 4-bit groups: `W[n, k] = (q[n, k] - middle) * s[n, k // G]`.

`q_weight` is uint32 `[n, K / 8]` (q4f16_1, q4f16_2: NK) or `[K / 8, n]` (q4f16_0: KN); one word
holds eight neighbours along k, nibble i is column 8w + i. One mask therefore cuts the pair of
columns (8w + i, 8w + i + 4) out of a word, int16 each, and x is laid out in the same pairs; words
need no weaving. Scales are float `[n, K / G]` or `[K / G, n]`, the middle is a constant (7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvm import ir, sym, tirx
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..expression import rebuild, strip_casts
from ..rule import objections
from . import simd
from .awq import CODES, group_size
from .int16_rows import Pairing, word_halves
from .vector_unit import NO_PAIRS, VectorUnit

SPAN = 4  # columns between the two halves of a pair
MASK = 0x000F000F


@dataclass(frozen=True)
class GroupWeight:
    """The two buffers of one layer."""

    name: ClassVar[str] = "4-bit groups"
    words: ir.Var
    scales: ir.Var
    group: int
    middle: int
    nk: bool
    n: int
    k: int

    @staticmethod
    def match(c: Contraction) -> GroupWeight | None:
        """Recognise `(q - middle) * s` over words of eight columns each."""
        e = c.weight
        if not isinstance(e, prim.Mul):
            return None
        for code, scale in ((e.a, e.b), (e.b, e.a)):
            code, scale = strip_casts(code), strip_casts(scale)
            if isinstance(code, prim.Sub) and isinstance(scale, TensorLoad):
                return _match(c, strip_casts(code.a), strip_casts(code.b), scale)
        return None

    def against(self, unit: VectorUnit) -> tuple[str, ...]:
        """The int16 kernels want whole vectors of words and of outputs, and x86."""
        columns = CODES * unit.lanes
        whole = columns % self.group == 0 and self.group >= 32
        return objections(
            (unit.pairs, NO_PAIRS),
            (self.k % columns == 0, f"k {self.k} is no multiple of {columns}"),
            (whole, f"groups of {self.group} are below 32 or no part of {columns}"),
            (self.n >= columns, f"n {self.n} is below {columns}"),
        )

    def pairs_of(self, words: ir.Expr, i: int, lanes: int) -> ir.Expr:
        """Codes of columns (8w + i, 8w + i + 4) of every word as int16 pairs."""
        shift = simd.splat(tirx.IntImm("uint32", 4 * i), lanes)
        mask = simd.splat(tirx.IntImm("uint32", MASK), lanes)
        return ((words >> shift) & mask).astype(f"int32x{lanes}")

    def pairing(self, lanes: int) -> Pairing:
        """The halves of every word."""
        return word_halves(lanes)

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
        """Fill `panel[depth / 2, 8 * lanes]` with pairs of q - middle, word by word, and
        `scales[depth / block, 8 * lanes]`."""
        middle = simd.twice(simd.splat(tirx.IntImm("int32", self.middle), lanes), lanes)
        index, step = str(n0.ty), lanes if self.nk else 1
        with T.serial(0, tirx.IntImm(index, CODES)) as part:
            n = T.bind(n0 + part * lanes)
            with T.serial(0, tirx.IntImm(index, depth // block)) as b:
                g = T.bind((k0 + b * block) // self.group)
                simd.store(scales, [b, part * lanes], self.scale(g, n, lanes), lanes)
            with T.serial(0, tirx.IntImm(index, depth // CODES // step)) as s:
                for w, vector in enumerate(self._words(n, k0 // CODES + s * step, lanes)):
                    for i in range(SPAN):
                        pairs = simd.subtract_pairs(self.pairs_of(vector, i, lanes), middle, lanes)
                        simd.store(panel, [(s * step + w) * SPAN + i, part * lanes], pairs, lanes)

    def _words(self, n: ir.Expr, word: ir.Expr, lanes: int) -> list[ir.Expr]:
        """Vectors over n of the words from `word` on: `lanes` of them turned, or one as it lies."""
        if not self.nk:
            return [T.bind(simd.load(self.words, [word, n], lanes))]
        rows = [T.bind(simd.load(self.words, [n + r, word], lanes)) for r in range(lanes)]
        return simd.transpose(rows)

    def scale(self, g: ir.Expr, n: ir.Expr, lanes: int) -> ir.Expr:
        """Scales of channels n ... n + lanes - 1 of group g as float32."""
        if not self.nk:
            return simd.widen(simd.load(self.scales, [g, n], lanes), lanes)
        column = T.alloc_buffer((lanes,), "float32")
        for lane in range(lanes):
            value = tirx.BufferLoad(self.scales, [n + lane, g]).astype("float32")
            T.buffer_store(column, value, [lane])
        return T.bind(simd.load(column, [tirx.IntImm("int32", 0)], lanes))

    def scales_along(self, n: ir.Expr, g: ir.Expr, count: int) -> ir.Expr:
        """Scales of groups g ... g + count - 1 of channel n as float32; of NK words."""
        return simd.widen(simd.load(self.scales, [n, g], count), count)


def _match(c: Contraction, code: ir.Expr, middle: ir.Expr, scale: TensorLoad) -> GroupWeight | None:
    shifted = strip_casts(code.a) if isinstance(code, prim.BitwiseAnd) else None
    constant = getattr(middle, "value", None)
    if shifted is None or getattr(code.b, "value", None) != 15 or constant is None:
        return None
    if not isinstance(shifted, prim.RShift) or not isinstance(shifted.a, TensorLoad):
        return None
    words, at, where = shifted.a, list(shifted.a.indices), list(scale.indices)
    nk = at[0].same_as(c.n_var)
    if str(words.ty) != "uint32" or len(at) != 2 or len(where) != 2 or constant != int(constant):
        return None
    if not at[1 - nk].same_as(c.n_var) and not nk:
        return None
    if not where[0 if nk else 1].same_as(c.n_var):
        return None
    group = group_size(where[1 if nk else 0], c.k_var, c.k)
    if group is None or not _natural(c, at[1 if nk else 0], strip_casts(shifted.b)):
        return None
    return GroupWeight(words.source, scale.source, group, int(constant), nk, c.n, c.k)


def _natural(c: Contraction, word: ir.Expr, shift: ir.Expr) -> bool:
    """Is column 8w + i nibble i of word w?"""
    analyzer, w = sym.Analyzer(), tirx.Var("w", c.k_var.ty)
    analyzer.bind(w, ir.Range(0, max(1, c.k // CODES)))
    for i in range(CODES):
        point = {c.k_var: w * CODES + i}
        here = analyzer.simplify(rebuild(shift, point))
        if not analyzer.can_prove_equal(rebuild(word, point), w):
            return False
        if getattr(here, "value", None) != 4 * i:
            return False
    return True

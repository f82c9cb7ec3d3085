"""AutoAWQ's 4-bit weights, recognised: `W[n, k] = (q[k, n] - z[k // G, n]) * s[k // G, n]`.

`qweight` is uint32 `[K, N / 8]`: one word holds eight output channels of one input channel, so a
row of words streams along n. `qzeros` is `[K / G, N / 8]` in the same packing and `scales` is
float `[K / G, N]`. Which nibble holds which channel is read from the function itself by setting
n to 8c + 0 ... 8c + 7, so every nibble order works (AutoAWQ's, in shifts, is 0 16 4 20 8 24 12 28).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tvm import ir, sym, tirx
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim

from .contraction import Contraction
from .expression import rebuild, strip_casts

CODES = 8  # 4-bit codes in one word


@dataclass(frozen=True)
class AwqLayout:
    """The three buffers of one layer; `shifts[i]` finds channel 8c + i in word c."""

    words: ir.Var
    zeros: ir.Var
    scales: ir.Var
    group: int
    n: int
    k: int
    shifts: tuple[int, ...]

    @classmethod
    def match(cls, c: Contraction) -> Self | None:
        """Recognise `(q - z) * s` over words that hold eight channels each."""
        e = c.weight
        if not isinstance(e, prim.Mul) or c.n % CODES:
            return None
        for difference, scale in ((e.a, e.b), (e.b, e.a)):
            difference, scale = strip_casts(difference), strip_casts(scale)
            if isinstance(difference, prim.Sub) and isinstance(scale, TensorLoad):
                codes = strip_casts(difference.a), strip_casts(difference.b)
                fields = _fields(c, *codes, scale)
                return None if fields is None else cls(*fields)
        return None


def _fields(c: Contraction, code: ir.Expr, zero: ir.Expr, scale: TensorLoad) -> tuple | None:
    """The fields of a layout, in their order."""
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
    return words.source, zeros.source, scale.source, group, c.n, c.k, shifts


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

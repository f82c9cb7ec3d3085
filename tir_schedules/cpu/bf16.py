"""Words for bfloat16 pairs: two bfloat16 in one int32 lane, AVX-512 only.

TVM's bfloat16 legalization turns every bfloat16 argument of a call into float32, so the two
instructions, whose LLVM intrinsics take `<32 x bfloat>`, cannot be called from TIR. They are
wrapped here in LLVM functions over int32 lanes, which every function that uses them imports
(`imported`) and LLVM inlines.

`vdpbf16ps` and `vcvtne2ps2bf16` round to nearest even, whatever the rounding mode, and take
denormals (below 2^-126, in inputs and results) as zero.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from . import simd

LANES = 16  # pairs in one register
RUN = 2 * LANES  # columns of k in one register of pairs, and in one AMX tile

LLVM = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)

define <16 x float> @bf16_dot(<16 x float> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %new = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %sum, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %new
}

define <16 x i32> @bf16_round(<16 x float> %low, <16 x float> %high) alwaysinline {
  %all = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(
    <16 x float> %high, <16 x float> %low)
  %pairs = bitcast <32 x bfloat> %all to <16 x i32>
  ret <16 x i32> %pairs
}
"""


def imported() -> AbstractContextManager[None]:
    """Scope in which `dot` and `rounded` can be used."""
    return T.attr(tirx.IntImm("int32", 0), "pragma_import_llvm", LLVM)


def dot(acc: ir.Expr, a: ir.Expr, b: ir.Expr) -> ir.Expr:
    """acc + a.low * b.low + a.high * b.high on float32 lanes, each product exact."""
    return tirx.call_pure_extern(f"float32x{LANES}", "bf16_dot", acc, a, b)


def rounded(low: ir.Expr, high: ir.Expr) -> ir.Expr:
    """Two float32 vectors laid end to end, as 16 pairs of neighbours."""
    return tirx.call_pure_extern(f"int32x{LANES}", "bf16_round", low, high)


def woven(low: ir.Expr, high: ir.Expr) -> ir.Expr:
    """Two float32 vectors lane by lane: pair i is (low[i], high[i])."""
    return picked(rounded(low, high), [i + half for i in range(LANES) for half in (0, LANES)])


def picked(pairs: ir.Expr, order: list[int]) -> ir.Expr:
    """The 32 bfloat16 of a vector in another order."""
    shorts = T.bind(tirx.reinterpret(f"int16x{RUN}", pairs))
    return tirx.reinterpret(f"int32x{LANES}", simd.shuffle([shorts], order))

"""AWQ codes as pairs of half-type numbers in one register, without a conversion instruction.

A code below 16 put into the low mantissa bits of a power of two is that power plus the code:

    float16   0x6400 = 1024, its last mantissa bit counts 1    0x6400 | q = 1024 + q
    bfloat16  0x4300 = 128,  the same                          0x4300 | q =  128 + q

so `(q | magic) - (z | magic) = q - z` exactly, two codes at a time. Within a word (or two words
woven, `weave`) the codes at shifts 4p and 4p + 16 are a pair after one shift and one mask; in
AutoAWQ's order these are neighbouring channels.
"""

from __future__ import annotations

from tvm import ir
from tvm.tirx.script.builder import ir as T

from .warp import u32

MAGIC = {"float16": 0x64006400, "bfloat16": 0x43004300}
PLANES = 4  # pairs of codes in a word


def weave(a: ir.Expr, b: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
    """Two words' low halves as one word and their high halves as another, `a` first."""
    low = T.bind((a & u32(0xFFFF)) | (b << u32(16)))
    return low, T.bind((a >> u32(16)) | (b & u32(0xFFFF0000)))


def plane(word: ir.Expr, p: int, dtype: str) -> ir.Expr:
    """The codes at shifts 4p and 4p + 16, each plus the magic number."""
    return ((word >> u32(4 * p)) & u32(0x000F000F)) | u32(MAGIC[dtype])


def pair(word: ir.Expr, low: int, high: int, dtype: str) -> ir.Expr:
    """The codes at any two shifts, each plus the magic number."""
    if high == low + 16:
        return plane(word, low // 4, dtype)
    parts = ((word >> u32(low)) & u32(15)) | (((word >> u32(high)) & u32(15)) << u32(16))
    return parts | u32(MAGIC[dtype])


def twice(word: ir.Expr, shift: int, dtype: str) -> ir.Expr:
    """One code in both halves, plus the magic number."""
    return (((word >> u32(shift)) & u32(15)) * u32(0x00010001)) | u32(MAGIC[dtype])

"""Vector words for kernels written with the IR builder.

Every word makes one vector instruction or a short run of them. `lanes` is the number of float32
values in one register of the target: 16 with AVX-512, 8 otherwise (LLVM cuts a vector of 8 in
two where registers hold 4, as with NEON).
Accumulators are buffers of exactly one register each: LLVM keeps such buffers in registers as
long as every access is the whole buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import ir, tirx
from tvm.ir.prim import expr as prim
from tvm.target import Target
from tvm.target.codegen import llvm_get_vector_width
from tvm.tirx.script.builder import ir as T


def float_lanes(target: Target) -> int:
    """float32 values per vector register, from the target's feature flags."""
    return 16 if llvm_get_vector_width(target) >= 512 else 8


def load(buffer: ir.Var, indices: Sequence[ir.Expr], lanes: int) -> ir.Expr:
    """`lanes` consecutive elements along the last axis."""
    *lead, last = indices
    return tirx.BufferLoad(buffer, [*lead, tirx.Ramp(last, one(last), lanes)])


def store(buffer: ir.Var, indices: Sequence[ir.Expr], value: ir.Expr, lanes: int) -> None:
    """Store `lanes` consecutive elements along the last axis."""
    *lead, last = indices
    T.buffer_store(buffer, value, [*lead, tirx.Ramp(last, one(last), lanes)])


def one(like: ir.Expr) -> ir.Expr:
    return tirx.IntImm(str(like.ty), 1)


def widen(value: ir.Expr, lanes: int) -> ir.Expr:
    """The vector as float32 (bfloat16 by its bits: TVM's own cast of bound vectors is wrong)."""
    if str(value.ty).startswith("bfloat16"):
        bits = tirx.reinterpret(f"uint16x{lanes}", value).astype(f"uint32x{lanes}")
        shifted = bits << splat(tirx.IntImm("uint32", 16), lanes)
        return tirx.reinterpret(f"float32x{lanes}", shifted)
    return value.astype(f"float32x{lanes}")


def splat(value: ir.Expr, lanes: int) -> ir.Expr:
    """A vector with `value` in every lane."""
    return tirx.Broadcast(value, lanes)


def fma(a: ir.Expr, b: ir.Expr, c: ir.Expr, lanes: int) -> ir.Expr:
    """a * b + c, rounded once."""
    dtype = f"float32x{lanes}"
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.fma.v{lanes}f32", a, b, c)


def shuffle(vectors: Sequence[ir.Expr], indices: Sequence[int]) -> ir.Expr:
    """Lanes `indices` of the vectors laid end to end."""
    return prim.Shuffle(list(vectors), [tirx.IntImm("int32", i) for i in indices])


def transpose(rows: Sequence[ir.Expr]) -> list[ir.Expr]:
    """The transpose of a square of vectors: log2(lanes) rounds of two-input shuffles.

    In the round of step s, rows i and i + s exchange the off-diagonal s x s squares of every
    2s x 2s square on the diagonal.
    """
    out, lanes = list(rows), len(rows)
    step = 1
    while step < lanes:
        low = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
        high = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
        for i in (i for i in range(lanes) if not i & step):
            a, b = out[i], out[i + step]
            out[i], out[i + step] = T.bind(shuffle([a, b], low)), T.bind(shuffle([a, b], high))
        step *= 2
    return out


class Registers:
    """A grid of accumulators, one vector register each."""

    def __init__(self, rows: int, columns: int, lanes: int) -> None:
        self.lanes = lanes
        self.grid = [
            [T.alloc_buffer((lanes,), "float32", scope="local") for _ in range(columns)]
            for _ in range(rows)
        ]

    def get(self, row: int, column: int) -> ir.Expr:
        return load(self.grid[row][column], [tirx.IntImm("int32", 0)], self.lanes)

    def set(self, row: int, column: int, value: ir.Expr) -> None:
        store(self.grid[row][column], [tirx.IntImm("int32", 0)], value, self.lanes)

    def clear(self) -> None:
        """All zero."""
        zero = splat(tirx.FloatImm("float32", 0.0), self.lanes)
        for row, line in enumerate(self.grid):
            for column in range(len(line)):
                self.set(row, column, zero)

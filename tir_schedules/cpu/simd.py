"""Vector words for kernels written with the IR builder.

Every word makes one vector instruction or a short run of them. `lanes` is the number of float32
values in one register (`VectorUnit.lanes`), and never below 8: LLVM cuts a vector of 8 in two where
registers hold 4, as with NEON.
Accumulators are buffers of exactly one register each: LLVM keeps such buffers in registers as
long as every access is the whole buffer. They have no scope "local": TVM takes buffers of that
scope from the workspace pool, a call to the runtime for each, and the others from the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from tvm import ir, tirx
from tvm.ir.prim import expr as prim
from tvm.target.codegen import llvm_version_major
from tvm.tirx.script.builder import ir as T

from .vector_unit import VectorUnit


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


def prefetch(buffer: ir.Var, indices: Sequence[ir.Expr]) -> None:
    """Ask for the cache line of an element; an address past the end does no harm.

    Into L2 only: the few fill buffers of L1 are left to the loads. Prefetches into L1 cost a third
    of the bandwidth.
    """
    address = tirx.address_of(tirx.BufferLoad(buffer, list(indices)))
    read, second_level, data = (tirx.IntImm("int32", i) for i in (0, 2, 1))
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, read, second_level, data))


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


def zeros(dtype: str, lanes: int) -> ir.Expr:
    """A vector of zeros."""
    return splat(tirx.const(0, dtype), lanes)


def absolute(value: ir.Expr, lanes: int) -> ir.Expr:
    """|value| of float32 lanes."""
    return tirx.call_llvm_pure_intrin(f"float32x{lanes}", f"llvm.fabs.v{lanes}f32", value)


def to_int(value: ir.Expr, lanes: int) -> ir.Expr:
    """float32 lanes to the nearest int32, ties to even."""
    near = tirx.call_llvm_pure_intrin(f"float32x{lanes}", f"llvm.nearbyint.v{lanes}f32", value)
    return near.astype(f"int32x{lanes}")


def across(combine: Callable[[ir.Expr, ir.Expr], ir.Expr], value: ir.Expr, lanes: int) -> ir.Expr:
    """All lanes of a vector combined to one scalar."""
    while lanes > 1:
        lanes //= 2
        value = T.bind(value)
        low, high = range(lanes), range(lanes, 2 * lanes)
        value = combine(shuffle([value], low), shuffle([value], high))
    return value


def interleave(vectors: Sequence[ir.Expr], lanes: int) -> list[ir.Expr]:
    """Vectors whose concatenation reads v0[0] v1[0] ... v0[1] v1[1] ...; a power of two of them."""
    low = [lane // 2 + (lane % 2) * lanes for lane in range(lanes)]
    high = [i + lanes // 2 for i in low]
    runs = [[v] for v in vectors]
    while len(runs) > 1:
        half = len(runs) // 2
        runs = [
            [
                T.bind(shuffle([a, b], pick))
                for a, b in zip(*two, strict=True)
                for pick in (low, high)
            ]
            for two in zip(runs[:half], runs[half:], strict=True)
        ]
    return runs[0]


def nibble_pairs(even: ir.Expr, odd: ir.Expr, lanes: int) -> list[ir.Expr]:
    """Codes of two rows of words as int16 pairs (even row low, odd row high), by nibble 0 ... 7.

    Odd nibbles come times 16: they are masked where they lie instead of shifted down.
    """
    sixteen = _words(16, lanes)
    low = T.bind((even & _words(0xFFFF, lanes)) | (odd << sixteen))
    high = T.bind((even >> sixteen) | (odd & _words(0xFFFF0000, lanes)))
    pairs = []
    for half in (low, high):
        for part in (half, T.bind(half >> _words(8, lanes))):
            for mask in (0x000F000F, 0x00F000F0):
                pairs.append(T.bind((part & _words(mask, lanes)).astype(f"int32x{lanes}")))
    return pairs


def transpose_bytes(rows: Sequence[ir.Expr], lanes: int) -> list[ir.Expr]:
    """Four vectors of words: vector v holds, in 128-bit lane L, byte 0 of word 4L + v of every row,
    then byte 1 ... 3."""
    low, high = _unpack(rows[0], rows[1], 8, lanes), _unpack(rows[2], rows[3], 8, lanes)
    return [w for a, b in zip(low, high, strict=True) for w in _unpack(a, b, 16, lanes)]


def _unpack(a: ir.Expr, b: ir.Expr, bits: int, lanes: int) -> list[ir.Expr]:
    """Units of a and b in turns, from the low and from the high half of every 128-bit lane."""
    units, per_lane = 32 * lanes // bits, 128 // bits
    dtype, vectors = f"uint{bits}x{units}", []
    a, b = (tirx.reinterpret(dtype, v) for v in (a, b))
    for start in (0, per_lane // 2):
        pick = [
            lane + start + i // 2 + units * (i % 2)
            for lane in range(0, units, per_lane)
            for i in range(per_lane)
        ]
        vectors.append(T.bind(tirx.reinterpret(f"uint32x{lanes}", shuffle([a, b], pick))))
    return vectors


def pair_of(low: ir.Expr, high: ir.Expr, lanes: int) -> ir.Expr:
    """Two vectors of int32 within 16 bits as int16 pairs."""
    mask = splat(tirx.IntImm("int32", 0xFFFF), lanes)
    return (low & mask) | (high << splat(tirx.IntImm("int32", 16), lanes))


def twice(codes: ir.Expr, lanes: int) -> ir.Expr:
    """int32 lanes below 2^15 as pairs of equal int16."""
    return codes | (codes << splat(tirx.IntImm("int32", 16), lanes))


def subtract_pairs(a: ir.Expr, b: ir.Expr, lanes: int) -> ir.Expr:
    """a - b on the int16 halves of int32 lanes."""
    shorts = f"int16x{2 * lanes}"
    difference = tirx.reinterpret(shorts, a) - tirx.reinterpret(shorts, b)
    return tirx.reinterpret(f"int32x{lanes}", difference)


def looked_up(table: Sequence[int], codes: ir.Expr, lanes: int) -> ir.Expr:
    """int32 lanes whose every byte is `table[byte of codes]`, 16 bytes; zero for bytes from 128."""
    words = [int.from_bytes(bytes(table[i : i + 4]), "little") for i in range(0, 16, 4)]
    constants = [tirx.IntImm("uint32", words[lane % 4]) for lane in range(lanes)]
    name = "llvm.x86.avx512.pshuf.b.512" if lanes == 16 else "llvm.x86.avx2.pshuf.b"
    dtype = f"int8x{4 * lanes}"
    whole, codes = (tirx.reinterpret(dtype, v) for v in (shuffle(constants, range(lanes)), codes))
    return tirx.reinterpret(f"int32x{lanes}", tirx.call_llvm_pure_intrin(dtype, name, whole, codes))


def _words(value: int, lanes: int) -> ir.Expr:
    return splat(tirx.IntImm("uint32", value), lanes)


def dot_pairs(acc: ir.Expr, a: ir.Expr, b: ir.Expr, lanes: int, vnni: bool) -> ir.Expr:
    """acc + a.low * b.low + a.high * b.high on int32 lanes of int16 pairs."""
    dtype, shorts = f"int32x{lanes}", f"int16x{2 * lanes}"
    if vnni:
        # LLVM gave this intrinsic's operands their true type in version 22
        if llvm_version_major() >= 22:
            a, b = tirx.reinterpret(shorts, a), tirx.reinterpret(shorts, b)
        name = f"llvm.x86.avx512.vpdpwssd.{32 * lanes}"
        return tirx.call_llvm_pure_intrin(dtype, name, acc, a, b)
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
    a, b = tirx.reinterpret(shorts, a), tirx.reinterpret(shorts, b)
    return acc + tirx.call_llvm_pure_intrin(dtype, name, a, b)


def dot_quads(acc: ir.Expr, a: ir.Expr, b: ir.Expr, lanes: int) -> ir.Expr:
    """acc + the four products of uint8 quads of a and int8 quads of b, on int32 lanes."""
    if llvm_version_major() >= 22:
        a, b = (tirx.reinterpret(f"int8x{4 * lanes}", v) for v in (a, b))
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, a, b)


def dot_bytes(acc: ir.Expr, a: ir.Expr, b: ir.Expr, unit: VectorUnit) -> ir.Expr:
    """acc + the four products of uint8 quads of a and int8 quads of b, exactly, on any unit."""
    lanes = unit.lanes
    if unit.vnni:
        return dot_quads(acc, a, b, lanes)
    if unit.pairs:
        shorts, byte = f"int16x{2 * lanes}", _shorts(8, lanes)
        mask = splat(tirx.IntImm("int32", 0x00FF00FF), lanes)
        whole, signed = tirx.reinterpret(f"uint16x{2 * lanes}", a), tirx.reinterpret(shorts, b)
        high = tirx.reinterpret(f"int32x{lanes}", whole >> _shorts(8, lanes, "uint16"))
        odd, even = signed >> byte, (signed << byte) >> byte
        for codes, values in ((a & mask, even), (high, odd)):
            acc = dot_pairs(acc, codes, tirx.reinterpret(f"int32x{lanes}", values), lanes, False)
        return acc
    top = splat(tirx.IntImm("int32", 24), lanes)
    for i in range(4):
        down, up = (splat(tirx.IntImm("int32", bits), lanes) for bits in (8 * i, 24 - 8 * i))
        acc = acc + ((a >> down) & splat(tirx.IntImm("int32", 255), lanes)) * ((b << up) >> top)
    return acc


def _shorts(value: int, lanes: int, dtype: str = "int16") -> ir.Expr:
    return splat(tirx.IntImm(dtype, value), 2 * lanes)


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


def lane_sums(vectors: Sequence[ir.Expr], lanes: int) -> ir.Expr:
    """Vector whose lane i is the sum of all lanes of vector i (their number a power of two)."""
    level, count = list(vectors), len(vectors)
    even, odd = range(0, 2 * lanes, 2), range(1, 2 * lanes, 2)
    for _ in range(lanes.bit_length() - 1):
        pairs = [(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = [
            T.bind(shuffle([a, b], even) + shuffle([a, b], odd))
            for a, b in pairs or [(level[0], level[0])]
        ]
    return shuffle([level[0]], range(count))


def ceil_div(a: ir.Expr, b: int) -> ir.Expr:
    """a / b, rounded up."""
    return tirx.floordiv(a + (b - 1), tirx.IntImm(str(a.ty), b))


def loop(parallel: bool, extent: ir.Expr) -> AbstractContextManager[ir.Var]:
    """A parallel or a serial loop."""
    return T.parallel(0, extent) if parallel else T.serial(0, extent)


class Registers:
    """A grid of accumulators, one vector register each."""

    def __init__(self, rows: int, columns: int, lanes: int, dtype: str = "float32") -> None:
        self.lanes, self.dtype = lanes, dtype
        self.grid = [[T.alloc_buffer((lanes,), dtype) for _ in range(columns)] for _ in range(rows)]

    def get(self, row: int, column: int) -> ir.Expr:
        return load(self.grid[row][column], [tirx.IntImm("int32", 0)], self.lanes)

    def set(self, row: int, column: int, value: ir.Expr) -> None:
        store(self.grid[row][column], [tirx.IntImm("int32", 0)], value, self.lanes)

    def clear(self) -> None:
        """All zero."""
        zero = zeros(self.dtype, self.lanes)
        for row, line in enumerate(self.grid):
            for column in range(len(line)):
                self.set(row, column, zero)

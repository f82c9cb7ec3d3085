"""Rows of x and panels of W as bfloat16 pairs, in the order that vdpbf16ps and AMX tiles share.

    x       `[rows / 16 * K / 32 * 16, 16]` int32: squares of 16 rows times 32 columns, 1 KiB each,
            the squares of the same rows one after another along k. One square is an AMX A tile; a
            pair of one row, repeated in all lanes, is an operand of vdpbf16ps.
    panel   `[columns / 16, depth / 2, 16]` int32: for 16 columns of the output one vector per pair
            of k. Sixteen such vectors are an AMX B tile ("VNNI layout"), one is the other operand.

Squares lie in one piece, so neither tiles nor caches see the row length as a stride. k is filled
up with zeros to a multiple of 32, in x and in W, since 0 times garbage may be NaN; rows past the
last repeat it, and their results are not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Protocol

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..expression import in_float32, rebuild
from ..rule import objections
from . import bf16, simd
from .awq import CODES
from .bf16 import LANES, RUN
from .evaluated import EvaluatedWeight
from .int16_gemm import PairWeight
from .int16_rows import Pairing, neighbours

ROWS = 32  # of x are allotted together: two squares
COLUMNS = CODES * LANES  # of one panel, or fewer where W has fewer rows
CHUNK = 128  # columns of k that a 4-bit layout unpacks at a time


class Panels(Protocol):
    """A weight that can fill panels of bfloat16 pairs."""

    @property
    def pairing(self) -> Callable[[int], Pairing]: ...

    def pack(self, panel: ir.Var, n0: ir.Expr, columns: int, k0: ir.Expr, depth: int) -> None:
        """Fill the panel with W[n0 + j, k0 + i], i < depth, and zeros up to a multiple of RUN."""


@dataclass(frozen=True)
class BfloatRows:
    """All rows of x; `squares` of them lie along k."""

    pairs: ir.Var
    squares: int
    order: list[int]

    @staticmethod
    def alloc(c: Contraction, pairing: Pairing) -> BfloatRows:
        """A buffer for all rows at the builder's current place."""
        squares = -(-c.k // RUN)
        lines = simd.ceil_div(c.room, ROWS) * (ROWS * squares)
        pairs = T.alloc_buffer((lines, c.const(LANES)), "int32")
        return BfloatRows(pairs, squares, [column for pair in pairing for column in pair])

    def fill(self, c: Contraction) -> None:
        """Round x, all rows in parallel."""
        with T.parallel(0, simd.ceil_div(c.rows, ROWS) * ROWS) as r:
            row = T.bind(tirx.min(r, c.rows - 1))
            first = T.bind(self.line(r))

            def square(s: ir.Expr, inside: int) -> None:
                pairs = _neighbours(c, lambda i: c.x(row, s * RUN + i), inside)
                if self.order != list(range(RUN)):
                    pairs = bf16.picked(pairs, self.order)
                simd.store(self.pairs, [first + s * LANES, c.const(0)], pairs, LANES)

            _squares(c, c.k, square)

    def line(self, r: ir.Expr) -> ir.Expr:
        """Where row r of its first square lies; the next square is LANES lines further."""
        return r // LANES * (self.squares * LANES) + r % LANES


@dataclass(frozen=True)
class FloatPanels:
    """Weights as the function computes them, rounded once from float32 to bfloat16."""

    c: Contraction
    weight: EvaluatedWeight

    @staticmethod
    def against(c: Contraction, weight: EvaluatedWeight) -> tuple[str, ...]:
        """Rows of n are read 128 columns at a time."""
        return objections((weight.nk or c.n >= COLUMNS, f"n {c.n} is below {COLUMNS}"))

    @property
    def pairing(self) -> Callable[[int], Pairing]:
        """Neighbours along k."""
        return neighbours

    def pack(self, panel: ir.Var, n0: ir.Expr, columns: int, k0: ir.Expr, depth: int) -> None:
        """Fill `panel[columns / 16, depth / 2, 16]`; columns past n repeat the last."""
        pack = self._pack_nk if self.weight.nk else self._pack_kn
        with T.serial(0, self.c.const(columns // LANES)) as part:
            pack(panel, part, n0 + part * LANES, k0, depth)

    def _pack_nk(self, panel: ir.Var, part: ir.Expr, n: ir.Expr, k0: ir.Expr, depth: int) -> None:
        rows = [T.bind(self._inside(n + r)) for r in range(LANES)]

        def square(s: ir.Expr, inside: int) -> None:
            k = T.bind(k0 + s * RUN)
            for r in rows:
                self._prefetch(r + LANES, k)
            turned = simd.transpose([self._along_k(r, k, inside) for r in rows])
            for j, pairs in enumerate(turned):
                simd.store(panel, [part, s * LANES + j, self.c.const(0)], pairs, LANES)

        _squares(self.c, depth, square)

    def _along_k(self, n: ir.Expr, k: ir.Expr, inside: int) -> ir.Expr:
        """Pairs of W[n, k ... k + inside - 1], then zeros."""
        return _neighbours(self.c, lambda i: self._at(n, k + i), inside)

    def _at(self, n: ir.Expr, k: ir.Expr) -> ir.Expr:
        w = self.weight
        return rebuild(w.expression, {w.n_var: n, w.k_var: k})

    def _prefetch(self, n: ir.Expr, k: ir.Expr) -> None:
        """Ask for W[n, k], a row of the next 16: their runs are too short for the hardware."""
        load = self._at(n, k)
        if isinstance(load, TensorLoad):
            simd.prefetch(load.source, list(load.indices))

    def _pack_kn(self, panel: ir.Var, part: ir.Expr, n: ir.Expr, k0: ir.Expr, depth: int) -> None:
        zero = simd.zeros("float32", LANES)

        def across_n(k: ir.Expr) -> ir.Expr:
            row = _floats(self.c, lambda j: self.weight.at(self._inside(n + j), k), LANES)
            return T.bind(row[0])

        def square(s: ir.Expr, inside: int) -> None:
            for p in range(LANES):
                k = [k0 + s * RUN + i for i in range(2 * p, min(2 * p + 2, inside))]
                even, odd = [*map(across_n, k), zero, zero][:2]
                at = [part, s * LANES + p, self.c.const(0)]
                simd.store(panel, at, bf16.woven(even, odd), LANES)

        _squares(self.c, depth, square)

    def _inside(self, n: ir.Expr) -> ir.Expr:
        """Only a matrix narrower than its one panel has columns past n."""
        return n if self.c.n >= COLUMNS else self.weight.inside(n)


@dataclass(frozen=True)
class CodePanels:
    """4-bit codes as `weight` unpacks them to pairs of q - z, times s, rounded once to bfloat16."""

    c: Contraction
    weight: PairWeight

    @staticmethod
    def against(c: Contraction, weight: PairWeight) -> tuple[str, ...]:
        """Whole chunks of k must hold whole groups, or groups whole chunks."""
        return objections(
            (c.n >= COLUMNS, f"n {c.n} is below {COLUMNS}"),
            (c.k % CHUNK == 0, f"k {c.k} is no multiple of {CHUNK}"),
            (gcd(weight.group, CHUNK) >= RUN, f"groups of {weight.group} and {CHUNK} do not match"),
        )

    @property
    def pairing(self) -> Callable[[int], Pairing]:
        """The layout's."""
        return self.weight.pairing

    def pack(self, panel: ir.Var, n0: ir.Expr, columns: int, k0: ir.Expr, depth: int) -> None:
        """Fill `panel[8, depth / 2, 16]`, a chunk of k after another."""
        c, block = self.c, gcd(self.weight.group, CHUNK)
        codes = T.alloc_buffer((CHUNK // 2, columns), "int32")
        scales = T.alloc_buffer((CHUNK // block, columns), "float32")
        with T.serial(0, c.const(depth // CHUNK)) as chunk:
            k = T.bind(k0 + chunk * CHUNK)
            self.weight.pack_pairs(codes, scales, n0, k, CHUNK, block, LANES)
            with (
                T.serial(0, c.const(columns // LANES)) as part,
                T.serial(0, c.const(CHUNK // block)) as b,
            ):
                scale = T.bind(simd.load(scales, [b, part * LANES], LANES))
                with T.serial(0, c.const(block // 2)) as i:
                    p = T.bind(b * (block // 2) + i)
                    pairs = T.bind(simd.load(codes, [p, part * LANES], LANES))
                    at = [part, chunk * (CHUNK // 2) + p, c.const(0)]
                    simd.store(panel, at, _scaled(pairs, scale), LANES)


def _scaled(pairs: ir.Expr, scale: ir.Expr) -> ir.Expr:
    """Pairs of int16 times a float32 scale, as pairs of bfloat16."""
    shift = simd.splat(tirx.IntImm("int32", 16), LANES)
    low, high = (pairs << shift) >> shift, pairs >> shift
    return bf16.woven(*(half.astype(f"float32x{LANES}") * scale for half in (low, high)))


def _squares(c: Contraction, depth: int, body: Callable[[ir.Expr, int], None]) -> None:
    """`body(s, columns inside)` for every 32 columns of k."""
    whole, left = divmod(depth, RUN)
    if whole:
        with T.serial(0, c.const(whole)) as s:
            body(s, RUN)
    if left:
        body(c.const(whole), left)


def _neighbours(c: Contraction, at: Callable[[ir.Expr], ir.Expr], inside: int) -> ir.Expr:
    """16 pairs of `at(0)` ... `at(inside - 1)`, then zeros; stored bfloat16 goes by its bits."""
    some = at(c.const(0))
    if inside < RUN or not isinstance(some, TensorLoad) or str(some.ty) != "bfloat16":
        value = lambda i: in_float32(at(i)).astype("float32")  # noqa: E731
        return T.bind(bf16.rounded(*_floats(c, value, inside)))
    bits = T.alloc_buffer((RUN,), "uint16")
    with T.vectorized(0, c.const(RUN)) as i:
        T.buffer_store(bits, tirx.reinterpret("uint16", at(i)), [i])
    whole = simd.load(bits, [tirx.IntImm("int32", 0)], RUN)
    return T.bind(tirx.reinterpret(f"int32x{LANES}", whole))


def _floats(
    c: Contraction, value: Callable[[ir.Expr], ir.Expr], inside: int
) -> tuple[ir.Expr, ir.Expr]:
    """Two vectors of `value(i)`, zeros from `inside` on."""
    zero, halves = tirx.IntImm("int32", 0), []
    for start in (0, LANES):
        vector = T.alloc_buffer((LANES,), "float32")
        count = max(0, min(LANES, inside - start))
        if count == LANES:
            with T.vectorized(0, c.const(LANES)) as lane:
                T.buffer_store(vector, value(lane + start), [lane])
        else:
            simd.store(vector, [zero], simd.zeros("float32", LANES), LANES)
            for i in range(count):
                T.buffer_store(vector, value(c.const(start + i)), [c.const(i)])
        halves.append(simd.load(vector, [zero], LANES))
    return halves[0], halves[1]

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Protocol

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..expression import rebuild
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
        """Fill the panel with W[n0 + j, k0 + i]; `depth` may reach past k."""


@dataclass(frozen=True)
class BfloatRows:
    """All rows of x; `squares` of them lie along k."""

    pairs: ir.Var
    squares: int
    pairing: Pairing

    @staticmethod
    def alloc(c: Contraction, pairing: Pairing) -> BfloatRows:
        """A buffer for all rows at the builder's current place."""
        squares = -(-c.k // RUN)
        lines = simd.ceil_div(c.rows, ROWS) * (ROWS * squares)
        return BfloatRows(T.alloc_buffer((lines, c.const(LANES)), "int32"), squares, pairing)

    def fill(self, c: Contraction) -> None:
        """Round x, all rows in parallel."""
        order = [column for pair in self.pairing for column in pair]
        with T.parallel(0, simd.ceil_div(c.rows, ROWS) * ROWS) as r:
            row = T.bind(tirx.min(r, c.rows - 1))
            first = T.bind(self.line(r))

            def square(s: ir.Expr, inside: int) -> None:
                point = lambda i: c.x(row, s * RUN + i).astype("float32")  # noqa: E731
                pairs = bf16.rounded(*_floats(point, inside, c.index))
                if order != list(range(RUN)):
                    pairs = bf16.picked(pairs, order)
                simd.store(self.pairs, [first + s * LANES, c.const(0)], pairs, LANES)

            _runs(c.k, square, c.index)

    def line(self, r: ir.Expr) -> ir.Expr:
        """Where row r of its first square lies."""
        return r // LANES * (self.squares * LANES) + r % LANES


@dataclass(frozen=True)
class FloatPanels:
    """Weights as the function computes them, rounded once from float32 to bfloat16."""

    c: Contraction
    weight: EvaluatedWeight

    @property
    def pairing(self) -> Callable[[int], Pairing]:
        """Neighbours along k."""
        return neighbours

    def pack(self, panel: ir.Var, n0: ir.Expr, columns: int, k0: ir.Expr, depth: int) -> None:
        """Fill `panel[columns / 16, depth / 2, 16]`; columns past n repeat the last."""
        pack = self._pack_nk if self.weight.nk else self._pack_kn
        with T.serial(0, self.c.const(columns // LANES)) as part:
            pack(panel, part, n0 + part * LANES, k0, depth)

    def _pack_nk(
        self, panel: ir.Var, part: ir.Expr, n: ir.Expr, k0: ir.Expr, depth: int
    ) -> None:
        rows = [T.bind(self.weight.inside(n + r)) for r in range(LANES)]

        def square(s: ir.Expr, inside: int) -> None:
            turned = simd.transpose([self._along_k(r, k0 + s * RUN, inside) for r in rows])
            for j, pairs in enumerate(turned):
                simd.store(panel, [part, s * LANES + j, self.c.const(0)], pairs, LANES)

        _runs(self._inside(depth), square, self.c.index)

    def _along_k(self, n: ir.Expr, k: ir.Expr, inside: int) -> ir.Expr:
        """Pairs of W[n, k ... k + 31]."""
        e = self.weight.expression
        if inside == RUN and isinstance(e, TensorLoad) and str(e.ty) == "bfloat16":
            bits = T.alloc_buffer((RUN,), "uint16", scope="local")
            with T.vectorized(0, self.c.const(RUN)) as i:
                at = {self.weight.n_var: n, self.weight.k_var: k + i}
                T.buffer_store(bits, tirx.reinterpret("uint16", rebuild(e, at)), [i])
            whole = simd.load(bits, [tirx.IntImm("int32", 0)], RUN)
            return T.bind(tirx.reinterpret(f"int32x{LANES}", whole))
        point = lambda i: self.weight.at(n, k + i)  # noqa: E731
        return T.bind(bf16.rounded(*_floats(point, inside, self.c.index)))

    def _pack_kn(
        self, panel: ir.Var, part: ir.Expr, n: ir.Expr, k0: ir.Expr, depth: int
    ) -> None:
        def across_n(k: ir.Expr) -> ir.Expr:
            return _floats(lambda j: self.weight.at(self.weight.inside(n + j), k), LANES, index)[0]

        index, inside = self.c.index, self._inside(depth)
        with T.serial(0, self.c.const(inside // 2)) as p:
            k = T.bind(k0 + 2 * p)
            pairs = bf16.woven(across_n(k), across_n(k + 1))
            simd.store(panel, [part, p, self.c.const(0)], pairs, LANES)
        zero = simd.zeros("float32", LANES)
        for p in range(inside // 2, depth // 2):
            pairs = bf16.woven(across_n(k0 + 2 * p), zero) if 2 * p < inside else zero.astype("int32x16")
            simd.store(panel, [part, self.c.const(p), self.c.const(0)], pairs, LANES)

    def _inside(self, depth: int) -> int:
        """Columns of a stretch of k that W has: only the last stretch may reach past k."""
        return depth - (-self.c.k % RUN) if depth == 0 else depth

"""Weights taken as the function computes them: float `W[n, k]`, fp8 codes, anything injective.

The expression for one weight is evaluated for a vector of neighbours at a time, along the axis
that is contiguous in memory, with all half-precision arithmetic in float32. So a new weight
layout is served by every float kernel without a line here; only layouts whose words hold several
weights (4-bit) need, for speed, a file of their own.

Panels of k-contiguous weights are turned by square register transposes: `lanes` rows of n times
`lanes` columns of k. The few columns left when k is no multiple of that go one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tvm
from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..expression import in_float32, rebuild, walk
from . import simd
from .vector_unit import VectorUnit


@dataclass(frozen=True)
class EvaluatedWeight:
    """`W[n, k]` as an expression; `nk` tells whether k or n is contiguous in memory."""

    name: ClassVar[str] = "weights as the function makes them"
    expression: ir.Expr
    n_var: ir.Var
    k_var: ir.Var
    nk: bool
    n: int
    k: int
    k_step: int = 1

    @staticmethod
    def match(c: Contraction) -> EvaluatedWeight | None:
        """Any weight that is loaded from memory will do."""
        largest = _largest(c.weight)
        if largest is None:
            return None
        nk = any(v.same_as(c.k_var) for v in walk(list(largest.indices)[-1]))
        return EvaluatedWeight(c.weight, c.n_var, c.k_var, nk, c.n, c.k)

    def against(self, unit: VectorUnit) -> tuple[str, ...]:
        """Float kernels run anywhere."""
        return ()

    def at(self, n: ir.Expr, k: ir.Expr) -> ir.Expr:
        """One weight as float32."""
        value = rebuild(self.expression, {self.n_var: n, self.k_var: k})
        return in_float32(value).astype("float32")

    def along_k(self, n: ir.Expr, k: ir.Expr, lanes: int) -> ir.Expr:
        """W[n, k ... k + lanes - 1] as one float32 vector."""
        vector = T.alloc_buffer((lanes,), "float32")
        with T.vectorized(0, tirx.IntImm(str(k.ty), lanes)) as lane:
            T.buffer_store(vector, self.at(n, k + lane), [lane])
        return T.bind(simd.load(vector, [tirx.IntImm("int32", 0)], lanes))

    def ahead(self, n: ir.Expr, k: ir.Expr) -> None:
        """Prefetch the weights of row n from column k on: one cache line."""
        largest = _largest(self.expression)
        assert largest is not None  # else `match` had refused
        place = {self.n_var: n, self.k_var: k}
        simd.prefetch(largest.source, [rebuild(i, place) for i in largest.indices])

    def columns_per_line(self) -> int:
        """Neighbours along k in one cache line."""
        largest = _largest(self.expression)
        assert largest is not None
        return 512 // tvm.DataType(str(largest.ty)).bits

    def pack(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None:
        """Fill `panel[depth, width]` with W[n0 + j, k0 + i]; columns past n repeat the last."""
        pack = self._pack_nk if self.nk else self._pack_kn
        pack(panel, n0, width, k0, depth, lanes)

    def inside(self, n: ir.Expr) -> ir.Expr:
        """n, or the last row of the weight."""
        return tirx.min(n, tirx.IntImm(str(n.ty), self.n - 1))

    def _pack_nk(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None:
        whole = depth // lanes
        with T.serial(0, tirx.IntImm(str(n0.ty), width // lanes)) as group:
            rows = [T.bind(self.inside(n0 + group * lanes + r)) for r in range(lanes)]
            if whole:
                with T.serial(0, tirx.IntImm(str(n0.ty), whole)) as i:
                    square = [self.along_k(r, k0 + i * lanes, lanes) for r in rows]
                    for j, column in enumerate(simd.transpose(square)):
                        simd.store(panel, [i * lanes + j, group * lanes], column, lanes)
            for left in range(whole * lanes, depth):
                for r, row in enumerate(rows):
                    T.buffer_store(panel, self.at(row, k0 + left), [left, group * lanes + r])

    def _pack_kn(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None:
        rows, columns = tirx.IntImm(str(n0.ty), depth), tirx.IntImm(str(n0.ty), width)
        with T.serial(0, rows) as i, T.vectorized(0, columns) as j:
            T.buffer_store(panel, self.at(self.inside(n0 + j), k0 + i), [i, j])


def _largest(expression: ir.Expr) -> TensorLoad | None:
    """What the weight is loaded from; scales and the like are smaller."""
    loads = [e for e in walk(expression) if isinstance(e, TensorLoad)]
    return max(loads, key=_size, default=None)


def _size(e: TensorLoad) -> int:
    """Elements of a loaded buffer."""
    total = 1
    for extent in e.source.shape:
        total *= getattr(extent, "value", 1)
    return total

"""Float weights: `W[n, k]` as Hugging Face stores it, or `[k, n]` after a folded transpose.

Panels of `[n, k]` weights are turned by square register transposes: `lanes` rows of n, `lanes`
columns of k at a time. The few columns left when k is no multiple of that go one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd


@dataclass(frozen=True)
class DenseWeight:
    """A weight that lies in memory as floats; `nk` tells `[n, k]` from `[k, n]`."""

    buffer: ir.Var
    nk: bool
    n: int
    k: int
    k_step: int = 1

    @staticmethod
    def match(c: Contraction) -> DenseWeight | None:
        """Recognise `W[n, k]` or `W[k, n]`."""
        if not isinstance(c.weight, TensorLoad) or not str(c.weight.ty).startswith(
            ("float16", "float32", "bfloat16")
        ):
            return None
        indices = list(c.weight.indices)
        if indices not in ([c.n_var, c.k_var], [c.k_var, c.n_var]):
            return None
        return DenseWeight(c.weight.source, indices[0].same_as(c.n_var), c.n, c.k)

    @property
    def bytes(self) -> int:
        """Bytes per weight."""
        return 4 if str(self.buffer.dtype) == "float32" else 2

    def pack(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None:
        """Fill `panel[depth, width]` with W[n0 + j, k0 + i]; columns past n repeat the last."""
        self._pack_nk(panel, n0, width, k0, depth, lanes) if self.nk else self._pack_kn(
            panel, n0, width, k0, depth, lanes
        )

    def _row(self, n: ir.Expr) -> ir.Expr:
        return tirx.min(n, tirx.IntImm(str(n.ty), self.n - 1))

    def _pack_nk(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None:
        whole = depth // lanes
        with T.serial(0, tirx.IntImm(str(n0.ty), width // lanes)) as group:
            rows = [T.bind(self._row(n0 + group * lanes + r)) for r in range(lanes)]
            if whole:
                with T.serial(0, tirx.IntImm(str(n0.ty), whole)) as i:
                    vectors = [
                        T.bind(
                            simd.widen(simd.load(self.buffer, [r, k0 + i * lanes], lanes), lanes)
                        )
                        for r in rows
                    ]
                    for j, column in enumerate(simd.transpose(vectors)):
                        at = [i * lanes + j, group * lanes]
                        simd.store(panel, at, column, lanes)
            for left in range(whole * lanes, depth):
                for r, row in enumerate(rows):
                    value = tirx.BufferLoad(self.buffer, [row, k0 + left]).astype("float32")
                    T.buffer_store(panel, value, [left, group * lanes + r])

    def _pack_kn(
        self, panel: ir.Var, n0: ir.Expr, width: int, k0: ir.Expr, depth: int, lanes: int
    ) -> None:
        index = str(n0.ty)
        rows, columns = tirx.IntImm(index, depth), tirx.IntImm(index, width)
        with T.serial(0, rows) as i, T.vectorized(0, columns) as j:
            value = tirx.BufferLoad(self.buffer, [k0 + i, self._row(n0 + j)])
            T.buffer_store(panel, value.astype("float32"), [i, j])

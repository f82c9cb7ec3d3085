"""The device expressions that all schemes share: one tensor expression a layer, never two.

    y[.., n] = sum_k float32(x[.., k]) * float32(w[n, k])        cast to ``out_dtype`` at the end

The weight is read in its natural ``[n, k]`` order; a quantized one is an injective stage named
``dequantize`` in the model dtype, inlined or tiled by the schedule. The reduction is the stage
``NT_matmul`` (float32 always), the last stage ``cast`` where ``out_dtype`` is narrower. One TE
function means one PrimFunc whatever the graph passes do; its pattern is "output elementwise
fusable", so that bias, residual and activation still fuse onto it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm import te
    from tvm.relax.frontend import nn

_OUT_ELEMENTWISE_FUSABLE = 4

Dequantize = Callable[..., "te.Tensor"]
"""Parameters as te.Tensor -> the stage ``dequantize`` ``[n, k]``."""


def nt_matmul(x: nn.Tensor, w: nn.Tensor, out_dtype: str) -> nn.Tensor:
    """``x [.., k]`` times the float weight ``w [n, k]`` transposed."""
    return _matmul("nt_matmul", x, [w], lambda weight: weight, out_dtype)


def dequantized_matmul(
    x: nn.Tensor, params: Sequence[nn.Tensor], dequantize: Dequantize, out_dtype: str
) -> nn.Tensor:
    """``x [.., k]`` times ``dequantize(*params) [n, k]`` transposed."""
    return _matmul("dequantize_matmul", x, params, dequantize, out_dtype)


def dequantized_rows(
    ids: nn.Tensor, params: Sequence[nn.Tensor], dequantize: Dequantize, out_dtype: str
) -> nn.Tensor:
    """Rows ``ids`` (int32 ``[s]``) of ``dequantize(*params) [n, k]``: an embedding ``[s, k]``."""
    from tvm import te
    from tvm.relax.frontend.nn import op

    def rows(ids: te.Tensor, *stored: te.Tensor) -> te.Tensor:
        table = dequantize(*stored)
        return te.compute(
            (ids.shape[0], table.shape[1]),
            lambda s, j: table[ids[s], j].astype(out_dtype),
            name="take",
        )

    return op.tensor_expr_op(rows, "dequantize_take", [ids, *params])


def _matmul(
    name: str, x: nn.Tensor, params: Sequence[nn.Tensor], weight: Dequantize, out_dtype: str
) -> nn.Tensor:
    from tvm import te
    from tvm.relax.frontend.nn import op

    def matmul(x: te.Tensor, *stored: te.Tensor) -> te.Tensor:
        w = weight(*stored)
        k = te.reduce_axis((0, w.shape[1]), name="k")

        def product(*i: Any) -> Any:
            return te.sum(x(*i[:-1], k).astype("float32") * w(i[-1], k).astype("float32"), axis=k)

        y = te.compute((*x.shape[:-1], w.shape[0]), product, name="NT_matmul")
        if out_dtype == "float32":
            return y
        return te.compute(y.shape, lambda *i: y(*i).astype(out_dtype), name="cast")

    attrs = {"op_pattern": _OUT_ELEMENTWISE_FUSABLE}
    return op.tensor_expr_op(matmul, name, [x, *params], attrs=attrs)

"""8-bit weights times activations rounded to 8 bits while running (W8A8): ``i8_i8_f16_dynamic``.

    sx[t]   = max_k |x[t, k]| / 127,    xq[t, k] = round(x[t, k] / sx[t])               per token
    y[t, n] = sx[t] * q_scale[n] * (sum_k xq[t, k] code[n, k] - q_zero[n] sum_k xq[t, k])

Parameters and bytes are those of ``q8f16_1_gk`` (``int8.py``), so an artifact of the one becomes
one of the other by its name. The sums are int32 and exact; rounding is to nearest, ties to even.
What checkpoints with dynamic activations ask for (compressed-tensors, W8A8_DYNAMIC); any
8-bit file with a scale per row runs so. Embedding, head, router and experts are multiplied as
``q8f16_1_gk`` does, in float.

Never chosen by ``auto``: activations in 8 bits cost accuracy (KL .002 on a small model, the weights
alone .0002). Rejected: sx = max / 127.5 as compressed-tensors' own forward has it; servers and
msModelSlim divide by 127, so that the largest value is a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlc_bridge.schemes.int8 import Int8

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

LARGEST = 127.0
OPAQUE = {"op_pattern": 8}
OUT_ELEMENTWISE_FUSABLE = {"op_pattern": 4}


class DynamicInt8(Int8):
    """``q8f16_1_gk`` with another device expression."""

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        scale = op.tensor_expr_op(_row_scale, "row_scale", [x], attrs=OPAQUE)
        rounded = op.tensor_expr_op(_rounded_rows, "rounded_rows", [x], attrs=OPAQUE)
        total = op.tensor_expr_op(_row_total, "row_total", [rounded], attrs=OPAQUE)
        inputs = [rounded, p["q_weight"], scale, total, p["q_zero"], p["q_scale"]]

        def int8_matmul(*given: Any) -> Any:
            return _matmul(out_dtype, *given)

        return op.tensor_expr_op(int8_matmul, "int8_matmul", inputs, attrs=OUT_ELEMENTWISE_FUSABLE)


def _row_scale(x: Any) -> Any:
    """``x [.., k] -> float32 [.., 1]``; 1 for a row of zeros."""
    from tvm import te, tirx

    largest = _largest(x)
    zero, one = (tirx.const(v, "float32") for v in (0.0, 1.0))

    def scale(*i: Any) -> Any:
        most = largest(*i[:-1])
        return tirx.Select(most > zero, most / tirx.const(LARGEST, "float32"), one)

    return te.compute((*x.shape[:-1], 1), scale, name="row_scale")


def _rounded_rows(x: Any) -> Any:
    """``x [.., k] -> int8 [.., k]``."""
    from tvm import te, tirx

    largest = _largest(x)

    def rounded(*i: Any) -> Any:
        most = tirx.max(largest(*i[:-1]), tirx.const(1e-38, "float32"))
        steps = x(*i).astype("float32") / (most / tirx.const(LARGEST, "float32"))
        return tirx.nearbyint(steps).astype("int32").astype("int8")

    return te.compute(x.shape, rounded, name="rounded_rows")


def _largest(x: Any) -> Any:
    from tvm import te, tirx

    k = te.reduce_axis((0, x.shape[-1]), name="k")
    return te.compute(
        x.shape[:-1],
        lambda *i: te.max(tirx.abs(x(*i, k).astype("float32")), axis=k),
        name="largest",
    )


def _row_total(x: Any) -> Any:
    """``int8 [.., k] -> int32 [.., 1]``."""
    from tvm import te

    k = te.reduce_axis((0, x.shape[-1]), name="k")
    total = te.compute(
        x.shape[:-1], lambda *i: te.sum(x(*i, k).astype("int32"), axis=k), name="total"
    )
    return te.compute((*x.shape[:-1], 1), lambda *i: total(*i[:-1]), name="row_total")


def _matmul(dtype: str, x: Any, weight: Any, row: Any, total: Any, zero: Any, scale: Any) -> Any:
    """The sum of products as ``NT_matmul`` int32; zero and scales come after it."""
    from tvm import te

    n, k = weight.shape
    axis = te.reduce_axis((0, k), name="k")

    def product(*i: Any) -> Any:
        a, b = x(*i[:-1], axis).astype("int32"), weight(i[-1], axis).astype("int32")
        return te.sum(a * b, axis=axis)

    y = te.compute((*x.shape[:-1], n), product, name="NT_matmul")

    def finished(*i: Any) -> Any:
        *t, j = i
        exact = y(*i) - zero[j, 0].astype("int32") * total(*t, 0)
        steps = row(*t, 0) * scale[j, 0].astype("float32")
        return (exact.astype("float32") * steps).astype(dtype)

    return te.compute(y.shape, finished, name="cast")


ROWS = (DynamicInt8("i8_i8_f16_dynamic", None),)

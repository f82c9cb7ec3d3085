"""The small functions around a recurrence, each one kernel; float32 inside."""

from __future__ import annotations

from itertools import accumulate

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr


def softplus(x: Expr) -> Expr:
    return tirx.Select(x > 20.0, x, tirx.log(1.0 + tirx.exp(x)))


def silu(x: Expr) -> Expr:
    return x / (1.0 + tirx.exp(-x))


def f32(x: Expr) -> Expr:
    return x.astype("float32")


def sigmoid(x: nn.Tensor) -> nn.Tensor:
    def run(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: 1.0 / (1.0 + tirx.exp(-f32(x(*i)))), name="sigmoid")

    return op.tensor_expr_op(run, "sigmoid", [x])


def decay(alpha: nn.Tensor, a_log: nn.Tensor, dt_bias: nn.Tensor) -> nn.Tensor:
    """``exp(-exp(A_log) softplus(alpha + dt_bias))``, ``[m, heads]``."""

    def run(x: te.Tensor, a: te.Tensor, bias: te.Tensor) -> te.Tensor:
        return te.compute(
            x.shape,
            lambda i, h: tirx.exp(-tirx.exp(a[h]) * softplus(x[i, h] + bias[h])),
            name="decay",
        )

    return op.tensor_expr_op(run, "decay", [alpha, a_log, dt_bias])


def unit_scale(x: nn.Tensor, heads: int, width: int, eps: float = 1e-6) -> nn.Tensor:
    """``[m, 2 * heads]``: one over the length of every query and key head, which begin ``x``; a
    query's is also divided by the root of its width."""

    def run(x: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, width), name="k")
        shape = (x.shape[0], 2 * heads)
        squares = te.compute(
            shape,
            lambda i, h: te.sum(x[i, h * width + k] * x[i, h * width + k], axis=k),
            name="squares",
        )
        root = float(width) ** -0.5
        return te.compute(
            shape,
            lambda i, h: tirx.rsqrt(squares[i, h] + eps) * tirx.Select(h < heads, root, 1.0),
            name="unit_scale",
        )

    return op.tensor_expr_op(run, "unit_scale", [x])


def norm_then_gate(y: nn.Tensor, z: nn.Tensor, weight: nn.Tensor, eps: float) -> nn.Tensor:
    """``rms_norm(y) * weight * silu(z)`` over every head of ``y float32 [m, heads * v]``."""
    width = int(weight.shape[0])

    def run(y: te.Tensor, z: te.Tensor, w: te.Tensor) -> te.Tensor:
        m, c = y.shape
        k = te.reduce_axis((0, width), name="k")
        squares = te.compute(
            (m, c // width),
            lambda i, h: te.sum(y[i, h * width + k] * y[i, h * width + k], axis=k),
            name="squares",
        )

        def value(i: Expr, h: Expr, d: Expr) -> Expr:
            at = h * width + d
            scale = tirx.rsqrt(squares[i, h] / float(width) + eps)
            return (y[i, at] * scale * f32(w[d]) * silu(f32(z[i, at]))).astype(z.dtype)

        return te.compute((m, c // width, width), value, name="norm_then_gate")

    return op.reshape(op.tensor_expr_op(run, "norm_then_gate", [y, z, weight]), y.shape)


def ungrouped(x: nn.Tensor, groups: int, widths: tuple[int, ...]) -> nn.Tensor:
    """``x [m, groups * sum(widths)]``: each group holds columns of every kind; after this those of
    a kind are side by side."""
    whole = sum(widths)
    begins = [0, *accumulate(widths)]

    def run(x: te.Tensor) -> te.Tensor:
        def value(i: Expr, c: Expr) -> Expr:
            found = x[i, c]
            for begin, width in zip(begins, widths, strict=False):
                inside = c - begin * groups
                there = inside // width * whole + begin + inside % width
                found = tirx.if_then_else(inside >= 0, x[i, tirx.max(there, 0)], found)
            return found

        return te.compute(x.shape, value, name="ungrouped")

    return op.tensor_expr_op(run, "ungrouped", [x])


def columns(x: nn.Tensor, first: int, count: int) -> nn.Tensor:
    """``x[:, first : first + count]``."""

    def run(x: te.Tensor) -> te.Tensor:
        return te.compute((x.shape[0], count), lambda i, c: x[i, first + c], name="columns")

    return op.tensor_expr_op(run, "columns", [x])

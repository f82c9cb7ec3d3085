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


def step_size(dt: nn.Tensor, bias: nn.Tensor, limits: tuple[float, float | None]) -> nn.Tensor:
    """``softplus(dt + bias)`` within its limits, float32 ``[m, heads]``."""
    least, largest = limits

    def run(dt: te.Tensor, bias: te.Tensor) -> te.Tensor:
        def value(i: Expr, h: Expr) -> Expr:
            found = tirx.max(softplus(f32(dt[i, h]) + bias[h]), least)
            return found if largest is None else tirx.min(found, largest)

        return te.compute(dt.shape, value, name="step_size")

    return op.tensor_expr_op(run, "step_size", [dt, bias])


def exp_step(dt: nn.Tensor, a_log: nn.Tensor) -> nn.Tensor:
    """``exp(-exp(A_log) dt)``."""

    def run(dt: te.Tensor, a: te.Tensor) -> te.Tensor:
        return te.compute(
            dt.shape, lambda i, h: tirx.exp(-tirx.exp(a[h]) * dt[i, h]), name="exp_step"
        )

    return op.tensor_expr_op(run, "exp_step", [dt, a_log])


def ones(like: nn.Tensor, width: int) -> nn.Tensor:
    """``[m, width]`` of as many rows."""

    def run(x: te.Tensor) -> te.Tensor:
        return te.compute((x.shape[0], width), lambda *_: tirx.const(1.0, "float32"), name="ones")

    return op.tensor_expr_op(run, "ones", [like])


def skip(y: nn.Tensor, x: nn.Tensor, d: nn.Tensor) -> nn.Tensor:
    """``y + D x``: ``y [m, heads * p]``, of ``x`` its first columns."""

    def run(y: te.Tensor, x: te.Tensor, d: te.Tensor) -> te.Tensor:
        width = y.shape[1] // d.shape[0]
        return te.compute(y.shape, lambda i, c: y[i, c] + d[c // width] * x[i, c], name="skip")

    return op.tensor_expr_op(run, "skip", [y, x, d])


def gate_then_norm(
    y: nn.Tensor, z: nn.Tensor, weight: nn.Tensor, groups: int, eps: float
) -> nn.Tensor:
    """``rms_norm(y silu(z)) * weight`` over each group of columns of ``y float32 [m, c]``."""
    width = int(y.shape[1]) // groups

    def run(y: te.Tensor, z: te.Tensor, w: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, width), name="k")
        shape = (y.shape[0], groups, width)
        opened = te.compute(
            shape,
            lambda i, g, d: y[i, g * width + d] * silu(f32(z[i, g * width + d])),
            name="opened",
        )
        squares = te.compute(
            shape[:2],
            lambda i, g: te.sum(opened[i, g, k] * opened[i, g, k], axis=k),
            name="squares",
        )

        def value(i: Expr, g: Expr, d: Expr) -> Expr:
            scale = tirx.rsqrt(squares[i, g] / float(width) + eps)
            return (opened[i, g, d] * scale * f32(w[g * width + d])).astype(z.dtype)

        return te.compute(shape, value, name="gate_then_norm")

    return op.reshape(op.tensor_expr_op(run, "gate_then_norm", [y, z, weight]), y.shape)

"""The experts of a mixture: linear layers whose weight depends on the token.

    y[t, c, n] = sum_k x[t, c, k] W[chosen[t, c]][n, k]       ``ExpertLinear``
    z[t, n]    = sum_c share[t, c] y[t, c, n]                 ``combined``

The experts' parameters are stacked: every array of the scheme has the expert as its first axis. The
weight's element is the scheme's own ``dequantize`` expression, read through a view of one expert,
so that any scheme works here and no dequantized copy of the experts exists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import tvm_ffi
from tvm import ir, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr, Layer

OPAQUE = {"op_pattern": 8}


class ExpertLinear(Layer):
    """``count`` matrices ``[n, k]``; ``chosen int32 [m, c]`` names those of every token."""

    def forward(self, x: nn.Tensor, chosen: nn.Tensor, out_dtype: str | None = None) -> nn.Tensor:
        """``x [m, k]`` or ``[m, c, k] -> [m, c, n]``."""
        every_slot = x.ndim == 2

        def experts(x: te.Tensor, chosen: te.Tensor, *stored: te.Tensor) -> te.Tensor:
            weight, rows, k = self._weight(stored)

            def product(t: Expr, c: Expr, n: Expr) -> Expr:
                value = x[t, k] if every_slot else x[t, c, k]
                return te.sum(_f32(value) * weight(chosen[t, c], n, k), axis=k)

            y = te.compute((*chosen.shape, rows), product, name="experts")
            return te.compute(y.shape, lambda *i: y(*i).astype(out_dtype or x.dtype), name="cast")

        args = [x, chosen, *self.stored().values()]
        y = op.tensor_expr_op(experts, "experts", args, attrs=OPAQUE)
        return _plus_bias(y, chosen, self.bias) if "bias" in self.specs else y

    def _weight(self, stored: tuple[te.Tensor, ...]) -> tuple[Callable[..., Expr], int, Expr]:
        """float32 element (expert, n, k), number of rows, and the reduction axis k."""
        expert = tirx.Var("expert", "int32")
        views = [_OneExpert(tensor, expert) for tensor in stored]
        if self.quantized:
            stage = self.scheme.dequantize(self.width)(*views)
            body, axes = stage.op.body[0], [axis.var for axis in stage.op.axis]
            rows = int(stage.shape[0])
        else:
            axes = [tirx.Var("n", "int64"), tirx.Var("k", "int64")]
            body, rows = views[0][tuple(axes)], int(views[0].shape[0])

        def element(number: Expr, n: Expr, k: Expr) -> Expr:
            values = (number, *(_like(i, axis) for i, axis in zip((n, k), axes, strict=True)))
            table = dict(zip((expert, *axes), values, strict=True))
            renamed = tvm_ffi.structural_map(
                body, (ir.Var, lambda var: table.get(var, var)), order="post"
            )
            return _f32(renamed)

        return element, rows, te.reduce_axis((0, self.width), name="k")


class _OneExpert:
    """A tensor ``[experts, a, b]`` seen as the ``[a, b]`` of one expert."""

    def __init__(self, tensor: te.Tensor, expert: Expr) -> None:
        self.tensor, self.expert = tensor, expert
        self.shape, self.dtype = tensor.shape[1:], tensor.dtype

    def __getitem__(self, index: tuple[Expr, ...]) -> Expr:
        return self.tensor(self.expert, *index)

    def __call__(self, *index: Expr) -> Expr:
        return self[index]


def _plus_bias(y: nn.Tensor, chosen: nn.Tensor, bias: nn.Tensor) -> nn.Tensor:
    """``y [m, c, n]`` and the ``bias [e, n]`` of the chosen expert."""

    def biased(y: te.Tensor, chosen: te.Tensor, bias: te.Tensor) -> te.Tensor:
        def value(t: Expr, c: Expr, n: Expr) -> Expr:
            return y[t, c, n] + bias[chosen[t, c], n].astype(y.dtype)

        return te.compute(y.shape, value, name="biased")

    return op.tensor_expr_op(biased, "experts_bias", [y, chosen, bias])


def combined(y: nn.Tensor, share: nn.Tensor, dtype: str) -> nn.Tensor:
    """``y float32 [m, c, n]`` added up by ``share float32 [m, c]`` -> ``[m, n]``."""

    def combine(y: te.Tensor, share: te.Tensor) -> te.Tensor:
        m, slots, n = y.shape

        def total(t: Expr, j: Expr) -> Expr:
            terms = (share[t, c] * y[t, c, j] for c in range(int(slots)))
            return reduce(add, terms).astype(dtype)

        return te.compute((m, n), total, name="combined")

    return op.tensor_expr_op(combine, "experts_combined", [y, share])


def clamped(x: nn.Tensor, alpha: float, limit: float) -> nn.Tensor:
    """``[m, c, 2 * inner] -> [m, c, inner]``, by the equation of ``experts.Clamp``."""

    def clamped_mlp(x: te.Tensor) -> te.Tensor:
        m, c, both = x.shape
        inner = both // 2

        def value(t: Expr, i: Expr, j: Expr) -> Expr:
            gate = tirx.min(_f32(x[t, i, j]), limit)
            up = tirx.max(tirx.min(_f32(x[t, i, j + inner]), limit), -limit)
            return (gate * tirx.sigmoid(gate * alpha) * (up + 1.0)).astype(x.dtype)

        return te.compute((m, c, inner), value, name="clamped")

    return op.tensor_expr_op(clamped_mlp, "gated_clamped", [x])


def opened(y: nn.Tensor, gate: nn.Tensor) -> nn.Tensor:
    """``y [b, s, h]`` times the sigmoid of ``gate float32 [b, s, 1]``."""

    def open_gate(y: te.Tensor, gate: te.Tensor) -> te.Tensor:
        def value(b: Expr, t: Expr, j: Expr) -> Expr:
            return (_f32(y[b, t, j]) * tirx.sigmoid(gate[b, t, 0])).astype(y.dtype)

        return te.compute(y.shape, value, name="opened")

    return op.tensor_expr_op(open_gate, "shared_gate", [y, gate])


def _f32(x: Any) -> Any:
    return x.astype("float32")


def _like(index: Any, var: tirx.Var) -> Any:
    return tirx.Cast(var.ty.dtype, index) if hasattr(var.ty, "dtype") else index

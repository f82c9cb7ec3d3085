"""The experts of a mixture: linear layers whose weight depends on the token.

    y[t, c, n] = sum_k x[t, k] W[chosen[t, c]][n, k]                     ``ExpertLinear``
    y[t, n]    = sum_c share[t, c] sum_k x[t, c, k] W[chosen[t, c]][n, k]  ``ExpertLinear.combine``

The experts' parameters are stacked: every array of the scheme has the expert as its first axis. The
weight's element is the scheme's own ``dequantize`` expression, read through a view of one expert,
so that any scheme works here and no dequantized copy of the experts exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import ir, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr, Layer

OPAQUE = {"op_pattern": 8}


class ExpertLinear(Layer):
    """``count`` matrices ``[n, k]``; ``chosen int32 [m, c]`` names those of every token."""

    def forward(self, x: nn.Tensor, chosen: nn.Tensor) -> nn.Tensor:
        """``x [b, s, k] -> [m, c, n]`` with m = b * s."""

        def experts(x: te.Tensor, chosen: te.Tensor, *stored: te.Tensor) -> te.Tensor:
            weight, rows, k = self._weight(stored)
            y = te.compute(
                (*chosen.shape, rows),
                lambda t, c, n: te.sum(_f32(x[t, k]) * weight(chosen[t, c], n, k), axis=k),
                name="experts",
            )
            return te.compute(y.shape, lambda *i: y(*i).astype(x.dtype), name="cast")

        b, s, width = x.shape
        x = op.reshape(x, (b * s, width))
        args = [x, chosen, *self.stored().values()]
        y = op.tensor_expr_op(experts, "experts", args, attrs=OPAQUE)
        return _plus_bias(y, chosen, self.bias) if "bias" in self.specs else y

    def combine(self, x: nn.Tensor, chosen: nn.Tensor, share: nn.Tensor) -> nn.Tensor:
        """``x [m, c, k] -> [m, n]``, the experts' outputs added by ``share float32 [m, c]``."""

        def combined(
            x: te.Tensor, chosen: te.Tensor, share: te.Tensor, *stored: te.Tensor
        ) -> te.Tensor:
            weight, rows, k = self._weight(stored)
            c = te.reduce_axis((0, chosen.shape[1]), name="c")

            def product(t: Expr, n: Expr) -> Expr:
                return share[t, c] * _f32(x[t, c, k]) * weight(chosen[t, c], n, k)

            y = te.compute(
                (chosen.shape[0], rows),
                lambda t, n: te.sum(product(t, n), axis=[c, k]),
                name="combined",
            )
            return te.compute(y.shape, lambda *i: y(*i).astype(x.dtype), name="cast")

        args = [x, chosen, share, *self.stored().values()]
        y = op.tensor_expr_op(combined, "experts_combined", args, attrs=OPAQUE)
        return _plus_bias(y, chosen, self.bias, share) if "bias" in self.specs else y

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


def _plus_bias(y: nn.Tensor, chosen: nn.Tensor, bias: nn.Tensor, *share: nn.Tensor) -> nn.Tensor:
    """Adds ``bias [e, n]`` of the chosen expert to ``y [m, c, n]``; with shares their sum."""

    def each(y: te.Tensor, chosen: te.Tensor, bias: te.Tensor) -> te.Tensor:
        def value(t: Expr, c: Expr, n: Expr) -> Expr:
            return y[t, c, n] + bias[chosen[t, c], n].astype(y.dtype)

        return te.compute(y.shape, value, name="biased")

    def summed(y: te.Tensor, chosen: te.Tensor, bias: te.Tensor, share: te.Tensor) -> te.Tensor:
        c = te.reduce_axis((0, chosen.shape[1]), name="c")
        total = te.compute(
            y.shape,
            lambda t, n: te.sum(share[t, c] * _f32(bias[chosen[t, c], n]), axis=c),
            name="bias",
        )
        return te.compute(y.shape, lambda t, n: (_f32(y[t, n]) + total[t, n]).astype(y.dtype))

    return op.tensor_expr_op(summed if share else each, "experts_bias", [y, chosen, bias, *share])


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

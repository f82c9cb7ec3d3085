"""Attention whose output is gated: each query head has as many columns again behind it.

[q_0 g_0 q_1 g_1 ... k ... v]  ->  [q ... k ... v],  g;      out = attention(q, k, v) sigmoid(g)
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr


def split_gate(x: nn.Tensor, heads: int) -> tuple[nn.Tensor, nn.Tensor]:
    """``x [m, 2 * heads + 2 * kv_heads, d]`` -> the usual ``[m, heads + 2 * kv_heads, d]`` and the
    gate ``[m, heads, d]``."""

    def run(x: te.Tensor) -> list[te.Tensor]:
        m, every, width = x.shape

        def own(i: Expr, h: Expr, d: Expr) -> Expr:
            return x[i, tirx.Select(h < heads, 2 * h, h + heads), d]

        qkv = te.compute((m, every - heads, width), own, name="ungated")
        gate = te.compute((m, heads, width), lambda i, h, d: x[i, 2 * h + 1, d], name="gate")
        return [qkv, gate]

    qkv, gate = op.tensor_expr_op(run, "split_gate", [x])
    return qkv, gate


def gate(x: nn.Tensor, g: nn.Tensor) -> nn.Tensor:
    """``x * sigmoid(g)``, float32 inside."""

    def run(x: te.Tensor, g: te.Tensor) -> te.Tensor:
        def value(*i: Expr) -> Expr:
            y = x(*i).astype("float32") / (1.0 + tirx.exp(-g(*i).astype("float32")))
            return y.astype(x.dtype)

        return te.compute(x.shape, value, name="output_gate")

    return op.tensor_expr_op(run, "output_gate", [x, g])

"""Attention sinks in the graph: a logit of every head that has no value.

    out = out_without * sigmoid(lse - sink)

The runtime does not give lse away, so every KV head gets a spare query head, in whose place the
kernels tell it: elements 2 g and 2 g + 1 are the two parts of query head g's, base 2
(``tir_schedules/cpu/attention_spare.py``).
"""

from __future__ import annotations

import math

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr


def with_spare_heads(qkv: nn.Tensor, heads: int, kv_heads: int) -> nn.Tensor:
    """``[m, heads + 2 * kv_heads, d]`` with a query head of zeros behind every group."""
    group = heads // kv_heads

    def spare(qkv: te.Tensor) -> te.Tensor:
        m, every, d = qkv.shape

        def value(i: Expr, h: Expr, j: Expr) -> Expr:
            real = qkv[i, tirx.min(h - h // (group + 1), every - 1), j]
            query = tirx.if_then_else(h % (group + 1) < group, real, tirx.const(0, qkv.dtype))
            other = qkv[i, tirx.max(h - kv_heads, 0), j]
            return tirx.if_then_else(h < heads + kv_heads, query, other)

        return te.compute((m, every + kv_heads, d), value, name="spare_heads")

    return op.tensor_expr_op(spare, "spare_heads", [qkv])


def sunk(out: nn.Tensor, sinks: nn.Tensor, kv_heads: int) -> nn.Tensor:
    """``[m, heads + kv_heads, d]`` and ``sinks float32 [heads]`` -> ``[m, heads, d]``."""

    def sink(out: te.Tensor, sinks: te.Tensor) -> te.Tensor:
        m, every, d = out.shape
        group = int(every) // kv_heads - 1

        def f32(*at: Expr) -> Expr:
            return out[at].astype("float32")

        def value(i: Expr, h: Expr, j: Expr) -> Expr:
            first, g = h // group * (group + 1), h % group
            lse = f32(i, first + group, 2 * g) + f32(i, first + group, 2 * g + 1)
            kept = tirx.sigmoid(lse * math.log(2) - sinks[h])
            return (f32(i, first + g, j) * kept).astype(out.dtype)

        return te.compute((m, int(every) - kv_heads, d), value, name="sunk")

    return op.tensor_expr_op(sink, "attention_sinks", [out, sinks])

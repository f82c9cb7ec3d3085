"""From the projections of latent attention to heads of one width, and back; see ``latent.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr

if TYPE_CHECKING:
    from mlc_bridge.models.decoder.latent import Latent


def heads_of(part: Latent, q: nn.Tensor, compressed: nn.Tensor, kv: nn.Tensor) -> nn.Tensor:
    """``[m, 3 * heads, width]``: queries and keys with the rotated columns first, then values."""
    heads, turned, nope, value = part.heads, part.rotated, part.nope, part.value

    def run(q: te.Tensor, compressed: te.Tensor, kv: te.Tensor) -> te.Tensor:
        zero = tirx.const(0, q.dtype)

        def either(d: Expr, at: int, low: Expr, end: int, high: Expr) -> Expr:
            return tirx.if_then_else(d < at, low, tirx.if_then_else(d < end, high, zero))

        def column(i: Expr, h: Expr, d: Expr) -> Expr:
            begin = h * (turned + nope)
            query = either(
                d, turned, q[i, begin + nope + d], turned + nope, q[i, begin + d - turned]
            )
            own = (h - heads) * (nope + value)
            key = either(
                d, turned, compressed[i, part.rank + d], turned + nope, kv[i, own + d - turned]
            )
            mine = (h - 2 * heads) * (nope + value) + nope
            last = tirx.if_then_else(d < value, kv[i, mine + d], zero)
            behind = tirx.if_then_else(h < 2 * heads, key, last)
            return tirx.if_then_else(h < heads, query, behind)

        return te.compute((q.shape[0], 3 * heads, part.width), column, name="latent_heads")

    return op.tensor_expr_op(run, "latent_heads", [q, compressed, kv])


def values_of(part: Latent, out: nn.Tensor) -> nn.Tensor:
    """``[m, heads, width] -> [m, heads * value]``."""

    def run(out: te.Tensor) -> te.Tensor:
        shape = (out.shape[0], part.heads, part.value)
        return te.compute(shape, lambda i, h, d: out[i, h, d], name="latent_values")

    found = out if part.width == part.value else op.tensor_expr_op(run, "latent_values", [out])
    return op.reshape(found, (out.shape[0], part.heads * part.value))

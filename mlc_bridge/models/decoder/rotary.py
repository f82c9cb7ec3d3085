"""Rotary embedding in the graph, where the cache cannot rotate for all layers or sequences alike.

    angle[i, j]  = position[i] * rate[j]                        (``rope.py``)
    x'[d]        = x[d] cos - x[d'] sin      (other half of the pair: x[d'] cos + x[d] sin)

``longrope`` has two lists of factors: the short one for sequences up to the length of training, the
long one beyond. As in Hugging Face every row of a call takes the list of its whole sequence, so a
row must know how far its sequence reaches: the last position of the sequence in this call. What is
cached keeps the list it was rotated with; a sequence that grows across the limit has to be read
anew from its beginning, as Hugging Face's ``generate`` does. ``dynamic`` has a base for every
length of a sequence beyond that of training, so its rows must know the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from mlc_bridge.models.decoder.layers import Expr
from mlc_bridge.models.decoder.rope import Rope
from mlc_bridge.packing import Array

Table = tuple[nn.Tensor, ...]
"""Cosine and sine ``float32 [m, width / 2]``; then ``float32 [m]``, by which queries grow."""
Reach = Callable[[nn.Tensor], nn.Tensor]
"""Positions ``int32 [m]`` -> for every row the last position of its sequence, ``int32 [m]``."""


def positions(kv: PagedKVCache, rows: Expr) -> nn.Tensor:
    """``int32 [m]``: where in its sequence every row of this forward pass stands."""
    call = relax.call_pure_packed(
        "vm.builtin.attention_kv_cache_get_query_positions",
        kv._expr,
        ty_args=relax.TensorType((rows,), "int32"),
    )
    return nn.Tensor(_expr=relax.BlockBuilder.current().emit(call))


def each_row(positions: nn.Tensor) -> nn.Tensor:
    """Decoding: every row is a sequence."""
    return positions


def one_sequence(positions: nn.Tensor) -> nn.Tensor:
    """All rows belong to the sequence of the last."""

    def reach(at: te.Tensor) -> te.Tensor:
        return te.compute(at.shape, lambda _: at[at.shape[0] - 1], name="reach")

    return op.tensor_expr_op(reach, "reach", [positions])


def up_to(ends: nn.Tensor) -> Reach:
    """``ends int32 [b]`` are the last rows of the sequences, in rising order."""

    def of(positions: nn.Tensor) -> nn.Tensor:
        def reach(at: te.Tensor, ends: te.Tensor) -> te.Tensor:
            j = te.reduce_axis((0, ends.shape[0]), name="j")
            last = at.shape[0] - 1
            end = te.compute(
                at.shape,
                lambda i: te.min(
                    tirx.Select(ends[j] >= i.astype("int32"), ends[j], last.astype("int32")), axis=j
                ),
                name="end",
            )
            return te.compute(at.shape, lambda i: at[end[i]], name="reach")

        return op.tensor_expr_op(reach, "reach", [positions, ends])

    return of


def unbroken(positions: nn.Tensor) -> nn.Tensor:
    """Rows whose positions count on belong together: nobody says where a sequence ends."""

    def reach(at: te.Tensor) -> te.Tensor:
        rows = at.shape[0]
        j = te.reduce_axis((0, rows), name="j")

        def ends(i: Expr, j: Expr) -> Expr:
            following = tirx.if_then_else(j + 1 < rows, at[tirx.min(j + 1, rows - 1)], -1)
            return tirx.all(j >= i, following != at[j] + 1)

        end = te.compute(
            (rows,),
            lambda i: te.min(
                tirx.Select(ends(i, j), j.astype("int32"), (rows - 1).astype("int32")), axis=j
            ),
            name="end",
        )
        return te.compute((rows,), lambda i: at[end[i]], name="reach")

    return op.tensor_expr_op(reach, "reach", [positions])


def rope_table(positions: nn.Tensor, reach: Reach, rope: Rope, head_dim: int) -> Table:
    """Cosine and sine at ``positions int32 [m]``, and how queries grow where they do."""
    rates, rows = rope.rates(head_dim), [positions]
    if rope.lists is not None or rope.dynamic is not None:
        rows.append(reach(positions))
    table = _table(rows, rates, _rate(rope, 2 * rates.shape[1]), rope.amplitude)
    return table if rope.growth is None else (*table, _growth(positions, *rope.growth))


def _rate(rope: Rope, width: int) -> Callable[..., Expr]:
    """(i, j, rates, last position of row i's sequence) -> the angle of pair j at position 1."""
    if (lists := rope.lists) is not None:
        return lambda i, j, rates, last: rates[tirx.Select(last[i] >= lists.trained, 1, 0), j]
    if rope.dynamic is not None:
        return _ntk(*rope.dynamic, width)
    return lambda i, j, rates: rates[0, j]


def _ntk(factor: float, trained: int, width: int) -> Callable[..., Expr]:
    """rate[j] g^(-2 j / (width - 2)) for a row whose sequence has last + 1 tokens."""

    def rate(i: Expr, j: Expr, rates: te.Tensor, last: te.Tensor) -> Expr:
        tokens = tirx.max(_f32(last[i]) + 1.0, float(trained))
        g = tokens * (factor / trained) - (factor - 1.0)
        return rates[0, j] * tirx.exp(tirx.log(g) * _f32(j) * (-2.0 / (width - 2)))

    return rate


def _table(
    rows: list[nn.Tensor], rates: Array, rate: Callable[..., Expr], amplitude: float
) -> Table:
    """``rate(i, j, rates, ...)`` is the angle of row i's pair j at position 1."""

    def table(rates: te.Tensor, at: te.Tensor, *more: te.Tensor) -> list[te.Tensor]:
        def of(function: Callable[[Expr], Expr], name: str) -> te.Tensor:
            return te.compute(
                (at.shape[0], rates.shape[1]),
                lambda i, j: amplitude * function(_f32(at[i]) * rate(i, j, rates, *more)),
                name=name,
            )

        return [of(tirx.cos, "cosine"), of(tirx.sin, "sine")]

    constant = nn.Tensor(_expr=relax.const(rates.astype(np.float32)))
    cosine, sine = op.tensor_expr_op(table, "rope_table", [constant, *rows])
    return cosine, sine


def _growth(positions: nn.Tensor, beta: float, every: int) -> nn.Tensor:
    def growth(at: te.Tensor) -> te.Tensor:
        def of(i: Expr) -> Expr:
            return 1.0 + beta * tirx.log(1.0 + _f32(tirx.floordiv(at[i], every)))

        return te.compute(at.shape, of, name="growth")

    return op.tensor_expr_op(growth, "growth", [positions])


def rotate(
    x: nn.Tensor, table: Table, heads: tuple[int, int], *, interleaved: bool = False
) -> nn.Tensor:
    """``x [m, h, d]``: pairs turn by the table's angles in the first heads, queries and keys."""

    def rope(x: te.Tensor, cosine: te.Tensor, sine: te.Tensor, *growth: te.Tensor) -> te.Tensor:
        half = int(cosine.shape[1])
        apart = 1 if interleaved else half

        def turned(i: Expr, h: Expr, d: Expr) -> Expr:
            angle = d // 2 % half if interleaved else d % half
            first = d % 2 == 0 if interleaved else d < half
            other = tirx.if_then_else(first, -_f32(x[i, h, d + apart]), _f32(x[i, h, d - apart]))
            value = _f32(x[i, h, d]) * cosine[i, angle] + other * sine[i, angle]
            inside = tirx.all(h < sum(heads), d < 2 * half)
            y = tirx.if_then_else(inside, value, _f32(x[i, h, d]))
            if growth:
                y = y * tirx.Select(h < heads[0], growth[0][i], 1.0)
            return y.astype(x.dtype)

        return te.compute(x.shape, turned, name="rotate")

    return op.tensor_expr_op(rope, "rotate", [x, *table])


def _f32(x: Expr) -> Expr:
    return x.astype("float32")

"""A causal convolution over the last few tokens, every channel for itself.

    y[i, c] = act(bias[c] + sum_l w[c, 0, l] x[i - (L - 1) + l, c])

What lies before the run's first row comes from its sequence's past, the last L - 1 rows before it;
the rows that end the run become the next past. Arithmetic is float32.
"""

from __future__ import annotations

from typing import Literal

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr
from mlc_bridge.models.decoder.runs import Runs, start_of


def convolve(
    x: nn.Tensor,
    past: nn.Tensor,
    weight: nn.Tensor,
    bias: nn.Tensor | None,
    runs: Runs,
    activation: Literal["silu"] | None,
    dtype: str,
) -> nn.Tensor:
    """``x [m, c]``, ``past [b, (L - 1) * c]``, ``weight [c, 1, L]`` -> ``[m, c]`` of ``dtype``."""
    channels, _, taps = (int(n) for n in weight.shape)

    def causal_conv(
        x: te.Tensor, past: te.Tensor, w: te.Tensor, of: te.Tensor, first: te.Tensor, *b: te.Tensor
    ) -> te.Tensor:
        def at(i: Expr, c: Expr, row: Expr) -> Expr:
            before = row - first[i] + (taps - 1)  # place in the past of a row that lies there
            old = past[of[i], before * channels + c.astype("int32")]
            return tirx.if_then_else(row >= first[i], x[row, c], old).astype("float32")

        def value(i: Expr, c: Expr) -> Expr:
            total = b[0][c].astype("float32") if b else tirx.const(0.0, "float32")
            for tap in range(taps):
                row = i.astype("int32") - (taps - 1 - tap)
                total += w[c, 0, tap].astype("float32") * at(i, c, row)
            return (total / (1.0 + tirx.exp(-total)) if activation else total).astype(dtype)

        return te.compute(x.shape, value, name="causal_conv")

    args = [x, past, weight, runs.of, runs.first, *([] if bias is None else [bias])]
    return op.tensor_expr_op(causal_conv, "causal_conv", args)


def next_past(x: nn.Tensor, past: nn.Tensor, runs: Runs) -> nn.Tensor:
    """The last rows of every run, or of its past where the run is shorter; as ``past``."""
    channels = int(x.shape[1])
    rows = int(past.shape[1]) // channels

    def last_rows(x: te.Tensor, past: te.Tensor, ends: te.Tensor) -> te.Tensor:
        def value(run: Expr, place: Expr, c: Expr) -> Expr:
            row = ends[run] - (rows - 1) + place.astype("int32")
            start = start_of(ends, run.astype("int32"))
            old = past[run, (row - start + rows) * channels + c.astype("int32")]
            return tirx.if_then_else(row >= start, x[row, c], old)

        return te.compute((past.shape[0], rows, channels), value, name="conv_past")

    new = op.tensor_expr_op(last_rows, "conv_past", [x, past, runs.ends])
    return op.reshape(new, past.shape)

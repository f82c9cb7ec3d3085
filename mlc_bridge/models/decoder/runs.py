"""The rows of one forward pass as runs: one run of consecutive tokens for every sequence.

    ends  int32 [b]    last row of every run, in rising order
    of    int32 [m]    the run of every row
    first int32 [m]    the first row of that run

Attention's cache knows the sequences by itself; a recurrence has to be told where one ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr


@dataclass(frozen=True)
class Runs:
    ends: nn.Tensor
    of: nn.Tensor
    first: nn.Tensor

    @classmethod
    def up_to(cls, x: nn.Tensor, ends: nn.Tensor) -> Runs:
        """Runs that end at these rows of ``x [1, m, h]``."""
        return cls._placed(ends, _numbers(x.shape[0] * x.shape[1], x))

    @classmethod
    def one(cls, x: nn.Tensor) -> Runs:
        """All rows of ``x [1, m, h]`` in one run."""

        def last(x: te.Tensor) -> te.Tensor:
            end = (x.shape[1] - 1).astype("int32")
            return te.compute((1,), lambda _: end, name="ends")

        return cls.up_to(x, op.tensor_expr_op(last, "runs_one", [x]))

    @classmethod
    def each(cls, x: nn.Tensor) -> Runs:
        """Every row of ``x [b, 1, h]`` is a run."""
        rows = _numbers(x.shape[0] * x.shape[1], x)
        return cls(rows, rows, rows)

    @classmethod
    def _placed(cls, ends: nn.Tensor, rows: nn.Tensor) -> Runs:
        def of(rows: te.Tensor, ends: te.Tensor) -> te.Tensor:
            j = te.reduce_axis((0, ends.shape[0]), name="j")
            return te.compute(
                rows.shape,
                lambda i: te.sum((ends[j] < rows[i]).astype("int32"), axis=j),
                name="run_of",
            )

        def first(of: te.Tensor, ends: te.Tensor) -> te.Tensor:
            return te.compute(of.shape, lambda i: start_of(ends, of[i]), name="run_first")

        run = op.tensor_expr_op(of, "run_of", [rows, ends])
        return cls(ends, run, op.tensor_expr_op(first, "run_first", [run, ends]))


def start_of(ends: te.Tensor, run: Expr) -> Expr:
    """The first row of a run, ``int32``."""
    from tvm import tirx

    return tirx.if_then_else(run > 0, ends[tirx.max(run - 1, 0)] + 1, 0)


def _numbers(rows: Expr, x: nn.Tensor) -> nn.Tensor:
    def numbers(x: te.Tensor) -> te.Tensor:
        m = x.shape[0] * x.shape[1]
        return te.compute((m,), lambda i: i.astype("int32"), name="rows")

    return op.tensor_expr_op(numbers, "rows", [x])

"""Several kernels in one function, chosen by the number of rows."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from .contraction import Contraction

# kernels with the largest number of rows that each is for, in rising order, `None` for any
Kernels = list[tuple[int | None, Callable[[], None]]]


def emit_by_rows(c: Contraction, kernels: Kernels) -> None:
    """Emit the kernel for the number of rows: chosen now where it is known, else at run time."""
    (most, emit), *rest = kernels
    rows = c.fixed_rows()
    if most is None or (rows is not None and rows <= most):
        emit()
    elif rows is not None:
        emit_by_rows(c, rest)
    else:
        with T.If(c.rows <= most):
            with T.Then():
                emit()
            with T.Else():
                emit_by_rows(c, rest)

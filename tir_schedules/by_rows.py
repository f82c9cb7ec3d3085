"""Several kernels in one function, chosen by the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tvm.tirx.script.builder import ir as T

from .contraction import Contraction


class Kernel(NamedTuple):
    """One way to compute a layer: what it is called, and what writes it at the builder's place."""

    name: str
    emit: Callable[[], None]


# kernels with the largest number of rows that each is for, in rising order, `None` for any
Kernels = Sequence[tuple[int | None, Kernel]]


def emit_by_rows(c: Contraction, kernels: Kernels) -> None:
    """Emit the kernel for the number of rows: chosen now where it is known, else at run time."""
    (most, kernel), *rest = kernels
    rows = c.fixed_rows()
    if most is None or (rows is not None and rows <= most):
        kernel.emit()
    elif rows is not None:
        emit_by_rows(c, rest)
    else:
        with T.If(c.rows <= most):
            with T.Then():
                kernel.emit()
            with T.Else():
                emit_by_rows(c, rest)

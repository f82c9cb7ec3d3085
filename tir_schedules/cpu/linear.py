"""The rule for linear layers on CPUs: recognise the weight layout, pick the kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction, find
from . import awq_gemv, simd
from .awq import AwqWeight
from .awq_gemm import emit_awq_gemm
from .evaluated import EvaluatedWeight
from .float_gemv import FEW, emit_float_gemv
from .gemm import Tiles, emit_gemm

LAYOUTS = (AwqWeight, EvaluatedWeight)


class Linear:
    """`out[r, n] = finish(sum_k x[r, k] * W[n, k])` for every weight layout in `LAYOUTS`."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the layer with a new body, or `None` when `func` is no linear layer."""
        contraction = find(func)
        if contraction is None:
            return None
        for layout in LAYOUTS:
            weight = layout.match(contraction)
            if weight is None:
                continue
            try:
                return s_tir.Schedule(func.with_body(_body(contraction, weight, target)))
            except NotImplementedError:  # an expression that `rebuild` cannot copy
                return None
        return None


def _body(c: Contraction, weight: AwqWeight | EvaluatedWeight, target: Target) -> tirx.Stmt:
    with IRBuilder() as builder, T.sblock("root"):
        T.reads([])
        T.writes([])
        _dispatch(c, _kernels(c, weight, target))
    return builder.get()


Kernels = list[tuple[int | None, Callable[[], None]]]


def _kernels(c: Contraction, weight: AwqWeight | EvaluatedWeight, target: Target) -> Kernels:
    """Kernels with the largest number of rows that each is for, `None` for any."""
    lanes = simd.float_lanes(target)
    if isinstance(weight, AwqWeight) and awq_gemv.applies(c, weight, target, lanes):
        layer = (c, weight, target, lanes)
        return [
            (1, partial(awq_gemv.emit_awq_gemv, *layer, 1)),
            (FEW, partial(awq_gemv.emit_awq_gemv, *layer, FEW)),
            (None, partial(emit_awq_gemm, *layer)),
        ]
    many = partial(emit_gemm, c, weight, Tiles.choose(c, weight.k_step, lanes))
    if isinstance(weight, EvaluatedWeight) and weight.nk:
        return [(FEW, partial(emit_float_gemv, c, weight, target, lanes)), (None, many)]
    return [(None, many)]


def _dispatch(c: Contraction, kernels: Kernels) -> None:
    """The kernel for the number of rows: chosen now where it is known, else at run time."""
    (most, emit), *rest = kernels
    rows = c.fixed_rows()
    if most is None or (rows is not None and rows <= most):
        emit()
    elif rows is not None:
        _dispatch(c, rest)
    else:
        with T.If(c.rows <= most):
            with T.Then():
                emit()
            with T.Else():
                _dispatch(c, rest)

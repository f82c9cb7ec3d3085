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
    lanes = simd.float_lanes(target)
    with IRBuilder() as builder, T.sblock("root"):
        T.reads([])
        T.writes([])
        few = _few_rows(c, weight, target, lanes)
        many = partial(emit_gemm, c, weight, Tiles.choose(c, weight.k_step, lanes))
        rows = c.fixed_rows()
        if few is None or (rows is not None and rows > FEW):
            many()
        elif rows is not None:
            few()
        else:
            with T.If(c.rows <= FEW):
                with T.Then():
                    few()
                with T.Else():
                    many()
    return builder.get()


def _few_rows(
    c: Contraction, weight: AwqWeight | EvaluatedWeight, target: Target, lanes: int
) -> Callable[[], None] | None:
    """The kernel that streams the weight once, where its layout has one."""
    if isinstance(weight, EvaluatedWeight) and weight.nk:
        return partial(emit_float_gemv, c, weight, target, lanes)
    if (
        isinstance(weight, AwqWeight)
        and c.fixed_rows() == 1
        and awq_gemv.applies(c, weight, target, lanes)
    ):
        return partial(awq_gemv.emit_awq_gemv, c, weight, target, lanes)
    return None

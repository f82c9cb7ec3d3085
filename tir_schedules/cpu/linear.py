"""The rule for linear layers on CPUs: recognise the weight layout, pick the kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..by_rows import Kernels, emit_by_rows
from ..contraction import Contraction, find
from . import amx, awq_gemv, bf16_gemm, group4_gemv, simd
from .awq import AwqWeight
from .bf16_gemm import VectorKernel, emit_bf16_gemm
from .bf16_panels import CodePanels, FloatPanels, Panels
from .evaluated import EvaluatedWeight
from .float_gemv import FEW, emit_float_gemv
from .gemm import Tiles, emit_gemm
from .group4 import GroupWeight
from .int16_gemm import emit_int16_gemm

LAYOUTS = (AwqWeight, GroupWeight, EvaluatedWeight)
Weight = AwqWeight | GroupWeight | EvaluatedWeight
Emit = Callable[[], None]


class Linear:
    """`out[r, n] = finish(sum_k x[r, k] * W[n, k])` for every weight layout in `LAYOUTS`."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the layer with a new body, or `None` when `func` is no linear layer."""
        contraction = find(func)
        if contraction is None:
            return None
        lanes = simd.float_lanes(target)
        for layout in LAYOUTS:
            weight = layout.match(contraction)
            if weight is None or not weight.fits(target, lanes):
                continue
            try:
                body = _body(contraction, _kernels(contraction, weight, target, lanes))
            except NotImplementedError:  # an expression that `rebuild` cannot copy
                return None
            return s_tir.Schedule(func.with_body(body))
        return None


def _body(c: Contraction, kernels: Kernels) -> tirx.Stmt:
    with IRBuilder() as builder, T.sblock("root"):
        T.reads([])
        T.writes([])
        emit_by_rows(c, kernels)
    return builder.get()


def _kernels(c: Contraction, weight: Weight, target: Target, lanes: int) -> Kernels:
    """Kernels with the largest number of rows that each is for, `None` for any."""
    if isinstance(weight, AwqWeight) and awq_gemv.applies(c, weight, target, lanes):
        awq = partial(awq_gemv.emit_awq_gemv, c, weight, target, lanes)
        gemm = _four_bit_gemm(c, weight, target, lanes)
        return [(1, partial(awq, 1)), (FEW, partial(awq, FEW)), (None, gemm)]
    if isinstance(weight, GroupWeight):
        group = partial(group4_gemv.emit_group4_gemv, c, weight, target, lanes)
        decode: Kernels = [(1, partial(group, 1)), (FEW, partial(group, FEW))]
        gemm = _four_bit_gemm(c, weight, target, lanes)
        return [*(decode if group4_gemv.applies(c, weight) else []), (None, gemm)]
    many = _float_gemm(c, weight, target, lanes)
    if isinstance(weight, EvaluatedWeight) and weight.nk:
        return [(FEW, partial(emit_float_gemv, c, weight, target, lanes)), (None, many)]
    return [(None, many)]


def _four_bit_gemm(
    c: Contraction, weight: AwqWeight | GroupWeight, target: Target, lanes: int
) -> Emit:
    """int16 pairs, or bfloat16."""
    gemm = partial(emit_int16_gemm, c, weight, target, lanes)
    if not CodePanels.fits(c, weight):
        return gemm
    return _in_bfloat16(c, CodePanels(c, weight), target, gemm, c.x_dtype == "float16")


def _float_gemm(
    c: Contraction, weight: AwqWeight | EvaluatedWeight, target: Target, lanes: int
) -> Emit:
    """float32, or bfloat16."""
    gemm = partial(emit_gemm, c, weight, Tiles.choose(c, weight.k_step, lanes))
    if not isinstance(weight, EvaluatedWeight) or not FloatPanels.fits(c, weight):
        return gemm
    return _in_bfloat16(c, FloatPanels(c, weight), target, gemm, False)


def _in_bfloat16(
    c: Contraction, weight: Panels, target: Target, otherwise: Emit, tiles_may_round: bool
) -> Emit:
    """bfloat16 where the model's arithmetic is no better; with AMX it is worth a small loss."""
    exact = bf16_gemm.applies(c, target)
    best = partial(emit_bf16_gemm, c, weight, VectorKernel()) if exact else otherwise
    if amx.available(target) and (exact or tiles_may_round):
        return partial(amx.emit_if_permitted, c, weight, best)
    return best

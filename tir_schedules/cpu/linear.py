"""The rule for linear layers on CPUs: recognise the weight layout, pick the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..by_rows import Kernel, Kernels, emit_by_rows
from ..contraction import NO_LAYER, Contraction, find
from ..rule import Claim, objections
from . import amx, awq_gemv, awq_weave, bf16_gemm, group4_gemv
from .awq import CODES, AwqWeight
from .bf16_gemm import VectorKernel, emit_bf16_gemm
from .bf16_panels import CodePanels, FloatPanels, Panels
from .evaluated import EvaluatedWeight
from .float_gemv import FEW, emit_float_gemv
from .gemm import Tiles, emit_gemm
from .group4 import GroupWeight
from .int8_dot import ByteWeight, emit_int8_dot
from .int16_gemm import emit_int16_gemm
from .table4 import TableWeight
from .vector_unit import VectorUnit

LAYOUTS = (ByteWeight, AwqWeight, GroupWeight, TableWeight, EvaluatedWeight)
Weight = ByteWeight | AwqWeight | GroupWeight | EvaluatedWeight


class Linear:
    """`out[r, n] = finish(sum_k x[r, k] * W[n, k])` for every weight layout in `LAYOUTS`."""

    def claim(self, func: tirx.PrimFunc, target: Target) -> Claim:
        """Which kernels the layer gets, or why `func` is no linear layer."""
        layer = find(func)
        if layer is None:
            return Claim(contradicts=(NO_LAYER,))
        return claim_of_layer(layer, target)

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the layer with a new body, or `None` when `func` is no linear layer."""
        claim = self.claim(func, target)
        if not claim.applies or claim.layer is None:
            return None
        with IRBuilder() as builder, T.sblock("root"):
            T.reads([])
            T.writes([])
            emit_by_rows(claim.layer, claim.kernels)
        return s_tir.Schedule(func.with_body(builder.get()))


def claim_of_layer(layer: Contraction, target: Target) -> Claim:
    """The kernels for `layer`, by number of rows."""
    unit = VectorUnit.of(target).at_least(CODES)  # channels of an AutoAWQ word
    return _Choice(layer, unit).claim()


@dataclass
class _Choice:
    """The best kernels for one layer on one unit, noting on the way what cannot be taken."""

    c: Contraction
    unit: VectorUnit
    passed_over: list[str] = field(default_factory=list)

    def claim(self) -> Claim:
        for layout in LAYOUTS:
            weight = layout.match(self.c)
            if weight is None or not self._fits(layout.name, weight):
                continue
            kernels = self._kernels(weight)
            passed_over = tuple(dict.fromkeys(self.passed_over))
            return Claim((layout.name,), (), self.c, kernels, passed_over)
        return Claim(contradicts=("the weight comes from no buffer",), layer=self.c)

    def _fits(self, name: str, weight: Weight) -> bool:
        """On the whole unit, or on half of it: 2880 columns are no whole vectors of 16 words."""
        if self._may(name, weight.against(self.unit)):
            return True
        half = self.unit.half()
        if half.lanes < CODES or weight.against(half):
            return False
        self.unit = half
        return True

    def _may(self, name: str, against: tuple[str, ...]) -> bool:
        self.passed_over += [f"{name}: {reason}" for reason in against]
        return not against

    def _kernels(self, weight: Weight) -> Kernels:
        """Kernels with the largest number of rows that each is for, `None` for any."""
        c, unit = self.c, self.unit
        if isinstance(weight, ByteWeight):
            name = f"int8_dot {unit.byte_product} x{unit.lanes}"
            emit = partial(emit_int8_dot, c, weight, unit)
            return [
                (1, Kernel(name, partial(emit, True))),
                (None, Kernel(name, partial(emit, False))),
            ]
        if isinstance(weight, AwqWeight) and self._may(
            "awq_gemv", awq_gemv.against(c, weight, unit)
        ):
            name = f"awq_gemv {awq_weave.choose(weight, unit).instruction} x{unit.lanes}"
            awq = partial(awq_gemv.emit_awq_gemv, c, weight, unit)
            decode = [(rows, Kernel(name, partial(awq, rows))) for rows in (1, FEW)]
            return [*decode, (None, self._four_bit_gemm(weight))]
        if isinstance(weight, GroupWeight):
            gemm = self._four_bit_gemm(weight)
            if not self._may("group4_gemv", group4_gemv.against(c, weight)):
                return [(None, gemm)]
            name = f"group4_gemv {unit.pair_product} x{unit.lanes}"
            group = partial(group4_gemv.emit_group4_gemv, c, weight, unit)
            return [*((m, Kernel(name, partial(group, m))) for m in (1, FEW)), (None, gemm)]
        many = self._float_gemm(weight)
        if not isinstance(weight, EvaluatedWeight) or not self._may(
            "float_gemv", objections((weight.nk, "neighbours in memory lie along n"))
        ):
            return [(None, many)]
        few = Kernel(f"float_gemv fma x{unit.lanes}", partial(emit_float_gemv, c, weight, unit))
        return [(FEW, few), (None, many)]

    def _four_bit_gemm(self, weight: AwqWeight | GroupWeight) -> Kernel:
        """int16 pairs, or bfloat16."""
        emit = partial(emit_int16_gemm, self.c, weight, self.unit)
        gemm = Kernel(f"int16_gemm {self.unit.pair_product} x{self.unit.lanes}", emit)
        if not self._may("bf16_gemm", CodePanels.against(self.c, weight)):
            return gemm
        return self._in_bfloat16(CodePanels(self.c, weight), gemm, self.c.x_dtype == "float16")

    def _float_gemm(self, weight: AwqWeight | EvaluatedWeight) -> Kernel:
        """float32, or bfloat16."""
        emit = partial(emit_gemm, self.c, weight, Tiles.choose(self.c, weight.k_step, self.unit))
        gemm = Kernel(f"gemm fma x{self.unit.lanes}", emit)
        if not isinstance(weight, EvaluatedWeight):
            return gemm
        if not self._may("bf16_gemm", FloatPanels.against(self.c, weight)):
            return gemm
        return self._in_bfloat16(FloatPanels(self.c, weight), gemm, False)

    def _in_bfloat16(self, weight: Panels, otherwise: Kernel, tiles_may_round: bool) -> Kernel:
        """bfloat16 where the model's arithmetic is no better; with AMX it is worth a small loss."""
        against, best = bf16_gemm.against(self.c, self.unit), otherwise
        if not against:
            emit = partial(emit_bf16_gemm, self.c, weight, VectorKernel())
            best = Kernel(f"bf16_gemm vdpbf16ps x{self.unit.lanes}", emit)
        if self.unit.tiles and (not against or tiles_may_round):
            emit = partial(amx.emit_if_permitted, self.c, weight, best.emit)
            return Kernel(f"bf16_gemm tdpbf16ps, where not permitted {best.name}", emit)
        if (self.c.fixed_rows() or FEW + 1) > FEW:  # else nobody asks for it
            self._may("bf16_gemm", against)
        return best

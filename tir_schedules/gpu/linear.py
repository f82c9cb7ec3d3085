"""The rule for linear layers on CUDA: recognise the weight layout, pick kernels by rows.

One function may hold several kernels under a host-side choice by the number of rows, so a
dynamic `m` costs nothing on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..awq_weight import AwqLayout
from ..by_rows import Kernel, Kernels, emit_by_rows
from ..contraction import NO_LAYER, Contraction, find
from ..rule import Claim
from . import awq_few, choices, gemm
from .choices import measured
from .panels import AwqWords, Evaluated
from .tile import TILES
from .warp import compute_capability


class Linear:
    """`out[r, n] = finish(sum_k x[r, k] * W[n, k])` on tensor cores (sm_80 and newer)."""

    def claim(self, func: tirx.PrimFunc, target: Target) -> Claim:
        """Which kernels the layer gets, or what speaks against it."""
        capability = compute_capability(target) if target.kind.name == "cuda" else 0
        if capability < 80:
            return Claim(contradicts=("tensor cores before sm_80",))
        contraction = find(func)
        if contraction is None:
            return Claim(contradicts=(NO_LAYER,))
        kernels = _kernels(contraction, capability)
        if not kernels:
            return Claim(contradicts=("tiles do not fit its types or sizes",), layer=contraction)
        return Claim(("a linear layer",), layer=contraction, kernels=kernels)

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the layer with a new body, or `None` when it is no layer of ours."""
        claim = self.claim(func, target)
        if not claim.applies or claim.layer is None:
            return None
        return s_tir.Schedule(_with_body(func, partial(emit_by_rows, claim.layer, claim.kernels)))


def planned(func: tirx.PrimFunc, plan: awq_few.Plan) -> tirx.PrimFunc | None:
    """A 4-bit layer of known, few rows by one variant of its kernel; `None` where it has none."""
    c = find(func)
    layout = AwqLayout.match(c) if c is not None else None
    if c is None or layout is None or not awq_few.applies(c, layout):
        return None
    rows = c.fixed_rows() or awq_few.MOST
    if rows > awq_few.MOST or not plan.fits(-(-rows // awq_few.ROWS)):
        return None
    return _with_body(func, partial(awq_few.emit_awq_few, c, layout, rows, plan))


def _with_body(func: tirx.PrimFunc, emit: Callable[[], None]) -> tirx.PrimFunc:
    with IRBuilder() as builder, T.sblock("root"):
        T.reads([])
        T.writes([])
        emit()
    return func.with_body(builder.get()).with_attr("tirx.is_scheduled", True)


def _awq_few(c: Contraction, layout: AwqLayout, rows: int) -> Kernel:
    chosen = measured("awq_few").get(choices.layer(c.n, c.k, layout.group, rows))
    plan = awq_few.Plan(**chosen) if chosen else None
    return Kernel(f"awq_few {rows}", partial(awq_few.emit_awq_few, c, layout, rows, plan))


def _kernels(c: Contraction, capability: int) -> Kernels:
    """Kernels with the largest number of rows that each is for, `None` for any."""
    dtype = gemm.operand(c, capability)
    if dtype is None:
        return []
    layout = AwqLayout.match(c)
    few: list[tuple[int | None, Kernel]] = []
    if layout is not None and awq_few.applies(c, layout):
        few = [(rows, _awq_few(c, layout, rows)) for rows in (awq_few.ROWS, awq_few.MOST)]
    runs = (c.k, layout.group) if layout is not None and layout.group % 32 == 0 else (c.k,)
    tiles = [replace(tile, dtype=dtype).fit(*runs) for tile in TILES]
    weight = AwqWords.match(c, tiles[-1]) or Evaluated.match(c, tiles[-1])
    if weight is None or c.k % tiles[-1].depth or (c.fixed_rows() == 1 and not few):
        return []  # one row of another layout is for TVM's own GEMV rule
    many = [
        (
            tile.rows,
            Kernel(f"gemm {dtype} {tile.rows}", partial(gemm.emit_gemm, c, weight, tile)),
        )
        for tile in tiles
    ]
    return [*few, *many[:-1], (None, many[-1][1])]

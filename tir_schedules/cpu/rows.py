"""Functions that work row by row: norms, activations, softmax, residual adds, copies of rows.

Every block of such a function runs over rows (any number of outer loops) and then over one axis of
static length, which it maps or reduces::

    rms_norm     s[i] = sum_k x[i, k]^2;   y[i, j] = x[i, j] rsqrt(s[i] / n + eps) w[j]
    gated_silu   y[i, j] = x[i, j] / (1 + exp(-x[i, j])) x[i, n + j]
    softmax      m[i] = max_k x[i, k];   s[i] = sum_k exp(x[i, k] - m[i]);   ...

The schedule makes all blocks of a row one after another while the row is in the L1 cache, rows in
parallel when there is enough work, lanes along the row. A reduction keeps a vector of partial
results (``rfactor``) and folds it at the end. Exponentials become polynomials, which vectorize.
"""

from __future__ import annotations

from tvm import ir, s_tir, tirx
from tvm.target import Target
from tvm.tirx import IterVar
from tvm_ffi import structural_map

from ..rule import Answer, Claim
from . import vector_math
from .vector_unit import VectorUnit

# Elements below which waking the other cores costs more than it gives (a few microseconds).
SERIAL_BELOW = 65536
# Vectors of partial results of a reduction: enough to hide the latency of an addition.
PARTIALS = 4


class Rows:
    """Vector and parallel loops for functions of independent rows."""

    def claim(self, func: tirx.PrimFunc, target: Target) -> Claim:
        """Row by row, or which block is not."""
        if self.apply(func, target, False) is not None:
            return Claim(("every block runs row by row",))
        sch = s_tir.Schedule(func, error_render_level="none")
        blocks = sch.get_child_blocks(sch.get_sblock("root"))
        other = [sch.get(block).name_hint for block in blocks if not _row_wise(sch, block)]
        reasons = [f"block {name} does not run row by row" for name in other]
        return Claim(contradicts=tuple(reasons or ["the blocks do not nest under one row"]))

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> Answer:
        """Return a schedule of ``func``, or ``None`` when a block is not row by row."""
        sch = s_tir.Schedule(vectorizable(func), error_render_level="none")
        try:
            blocks = sch.get_child_blocks(sch.get_sblock("root"))
            if not blocks or not all(_row_wise(sch, block) for block in blocks):
                return None
            size = _schedule(sch, blocks, VectorUnit.of(target).lanes)
        except s_tir.ScheduleError:
            return None
        return s_tir.Schedule(serial_when_small(sch.mod["main"], max(1, SERIAL_BELOW // size)))


def _row_wise(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> bool:
    node, loops = sch.get(block), sch.get_loops(block)
    kinds = [axis.iter_type for axis in node.iter_vars]
    extent = sch.get(loops[-1]).extent if loops else None
    return (
        len(loops) == len(kinds) > 0
        and all(kind == IterVar.DataPar for kind in kinds[:-1])
        and kinds[-1] in (IterVar.DataPar, IterVar.CommReduce)
        and isinstance(extent, tirx.IntImm)
    )


def _schedule(sch: s_tir.Schedule, blocks: list[s_tir.schedule.SBlockRV], lanes: int) -> int:
    """Schedule all blocks under the rows of the last one; the length of its row."""
    *producers, last = blocks
    *outer, inner = sch.get_loops(last)
    length = int(sch.get(inner).extent)
    rows = sch.fuse(*outer) if outer else sch.add_unit_loop(last)
    reductions = []
    for block in reversed(producers):
        if sch.get(block).iter_vars[-1].iter_type == IterVar.CommReduce:
            reductions.append(_reduce(sch, block, rows, lanes))
        else:
            sch.compute_at(block, rows)
            _vectorize(sch, sch.get_loops(block)[-1], lanes)
    if sch.get(last).iter_vars[-1].iter_type == IterVar.CommReduce:
        raise s_tir.ScheduleError("the last block reduces")
    _vectorize(sch, inner, lanes)
    sch.parallel(rows)
    for reduction in reductions:
        sch.decompose_reduction(*reduction)
    return length


def _vectorize(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV, lanes: int) -> None:
    extent = int(sch.get(loop).extent)
    width = next((w for w in (2 * lanes, lanes, lanes // 2, 4, 2) if extent % w == 0), 1)
    if width > 1:
        sch.vectorize(sch.split(loop, [None, width])[1])


def _reduce(
    sch: s_tir.Schedule,
    block: s_tir.schedule.SBlockRV,
    rows: s_tir.schedule.LoopRV,
    lanes: int,
) -> tuple[s_tir.schedule.SBlockRV, s_tir.schedule.LoopRV]:
    """Schedule a reduction; the block to initialize, and the loop before which to do it."""
    inner = sch.get_loops(block)[-1]
    extent = int(sch.get(inner).extent)
    width = next((w for w in (PARTIALS * lanes, lanes, lanes // 2, 4) if extent % w == 0), 1)
    if width == 1:
        sch.compute_at(block, rows)
        return block, sch.get_loops(block)[-1]
    _, lane = sch.split(inner, [None, width])
    partial = sch.rfactor(lane, factor_axis=len(sch.get_loops(block)) - 2)
    sch.compute_at(block, rows)
    sch.compute_at(partial, rows)
    step, lane = sch.get_loops(partial)[-2:]
    if sch.get(step).extent == width:
        step, lane = lane, step
        sch.reorder(step, lane)
    sch.vectorize(lane)
    return partial, step


def vectorizable(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with its float32 exponentials and hyperbolic tangents as polynomials."""
    known = {"tirx.exp": vector_math.exp, "tirx.sigmoid": vector_math.sigmoid}
    known["tirx.tanh"] = vector_math.tanh

    def replace(call: ir.Call) -> ir.Expr:
        make = known.get(getattr(call.op, "name", ""))
        return make(call.args[0]) if make and str(call.ty) == "float32" else call

    return func.with_body(structural_map(func.body, (ir.Call, replace)))


def serial_when_small(func: tirx.PrimFunc, rows: int) -> tirx.PrimFunc:
    """Parallel loops of fewer than ``rows`` iterations run on the calling thread."""

    def choose(loop: tirx.For) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        serial = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
        if isinstance(loop.extent, tirx.IntImm):
            return serial if int(loop.extent) < rows else loop
        return tirx.IfThenElse(loop.extent < rows, serial, loop)

    func = func.with_body(structural_map(func.body, (tirx.For, choose)))
    # The two loops share variables and blocks until this pass renames them.
    return s_tir.transform.ConvertSSA()(ir.IRModule({"main": func}))["main"]

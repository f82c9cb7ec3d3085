"""The last rule: no function stays a serial scalar loop when its blocks allow more.

Every block is scheduled by itself: outer spatial loops are fused and run in parallel, the last
spatial loop is cut into vectors, reductions go between the two. A block whose loops are not of
plain form (opaque bodies, loop-carried state) is left exactly as it is.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.target import Target

from .vector_unit import VectorUnit

SMALL = 4096  # elements of static work below which waking the pool costs more than it gives


class Fallback:
    """Parallel and vector loops for injective and reduction blocks; always applies."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return a schedule of `func`, or `None` for functions without sblocks."""
        try:
            schedule = s_tir.Schedule(func, error_render_level="none")
            blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        except (s_tir.ScheduleError, ValueError):
            return None
        names = [schedule.get(block).name_hint for block in blocks]
        lanes = VectorUnit.of(target).lanes
        for name in names:
            attempt = schedule.copy()
            try:
                _schedule(attempt, name, lanes)
            except (s_tir.ScheduleError, ValueError):
                continue
            schedule = attempt
        return schedule


def _schedule(sch: s_tir.Schedule, name: str, lanes: int) -> None:
    """Schedule one block, raising `ScheduleError` where a step is not allowed."""
    block = sch.get_sblock(name)
    node, loops = sch.get(block), sch.get_loops(block)
    kinds = [axis.iter_type for axis in node.iter_vars]
    plain = {tirx.IterVar.DataPar, tirx.IterVar.CommReduce}
    if len(kinds) != len(loops) or not set(kinds) <= plain:
        return
    spatial = [x for x, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    if not spatial:
        return
    if len(spatial) != len(loops):
        reduce = [x for x in loops if x not in spatial]
        sch.reorder(*spatial[:-1], *reduce, spatial[-1])
    work = _static_work(sch, loops)
    outer, last = spatial[:-1], spatial[-1]
    width = _width(sch, last, lanes)
    if width:
        rest, vector = sch.split(last, [None, width])
        if len(spatial) != len(loops):
            sch.reorder(*outer, rest, *reduce, vector)
        sch.vectorize(vector)
        outer = [*outer, rest]
    elif outer:
        pass
    else:
        outer = [last]
    if outer and (work is None or work > SMALL):
        sch.parallel(sch.fuse(*outer))


def _static_work(sch: s_tir.Schedule, loops: list[s_tir.schedule.LoopRV]) -> int | None:
    total = 1
    for loop in loops:
        extent = sch.get(loop).extent
        if not isinstance(extent, tirx.IntImm):
            return None
        total *= extent.value
    return total


def _width(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV, lanes: int) -> int | None:
    """The widest vector that divides the loop."""
    extent = sch.get(loop).extent
    if not isinstance(extent, tirx.IntImm):
        return None
    return next((w for w in (lanes, lanes // 2, 4) if w > 1 and extent.value % w == 0), None)

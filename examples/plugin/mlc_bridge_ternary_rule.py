"""A schedule for ternary linear layers on CPUs: weights are unpacked where they are used.

The compiler hands every fused function to the rules in order. This one takes a function whose
first block unpacks sixteen codes of each uint32 word, and whose last but injective block multiplies
them: the unpacking moves into the product, so that no float16 copy of the matrix is written, and
the output channels run in parallel. Every other function is left to the next rule (``None``).
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.target import Target

CODES = 16  # in a word


class TernaryLinear:
    """See the module docstring; fulfils ``tir_schedules.Rule``."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        if target.kind.name != "llvm":
            return None
        try:
            sch = s_tir.Schedule(func, error_render_level="none")
            unpack, product, *_ = sch.get_child_blocks(sch.get_sblock("root"))
            if not _unpacks(sch.get(unpack)) or not _sums(sch.get(product)):
                return None
            sch.compute_inline(unpack)
            *rows, channel, k = sch.get_loops(product)
            sch.reorder(channel, *rows, k)
            sch.parallel(channel)
        except (s_tir.ScheduleError, ValueError):
            return None
        return sch


def _unpacks(block: s_tir.SBlock) -> bool:
    """Whether it writes ``[n, k]`` from words ``[n, k / 16]``."""
    out = block.writes[0].source.ty
    words = [r.source.ty for r in block.reads if r.source.ty.dtype == "uint32"]
    return len(words) == 1 and len(out.shape) == 2 and out.shape[1] == words[0].shape[1] * CODES


def _sums(block: s_tir.SBlock) -> bool:
    kinds = [axis.iter_type for axis in block.iter_vars]
    return kinds.count(tirx.IterVar.CommReduce) == 1 and kinds[-1] == tirx.IterVar.CommReduce


RULE = TernaryLinear()

"""TIR schedules that MLC's and TVM's own rules lack: `RULES(target)` is the ordered list.

The room imports only tvm, so that it can be used in any TVM project:

    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(module)
"""

from __future__ import annotations

from tvm.target import Target

from .plugins import plugin_rules
from .rule import Answer, Claim, Rule, claim_of

__all__ = ["RULES", "Answer", "Claim", "Rule", "claim_of"]


def RULES(target: Target) -> list[Rule]:
    """The rules for `target`, most special first, the one that always applies last.

    Other packages' rules come before ours (see `plugins`).
    """
    return [*plugin_rules(), *_own_rules(target)]


def _own_rules(target: Target) -> list[Rule]:
    if target.kind.name == "llvm":
        from . import cpu

        return list(cpu.RULES)
    from tvm.s_tir import dlight as dl

    from . import gpu

    return [
        *gpu.RULES,
        dl.gpu.Matmul(),
        dl.gpu.GEMV(),
        dl.gpu.Reduction(),
        dl.gpu.GeneralReduction(),
        dl.gpu.Fallback(),
    ]

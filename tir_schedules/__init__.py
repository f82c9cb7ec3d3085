"""TIR schedules that MLC's and TVM's own rules lack: `RULES(target)` is the ordered list.

The room imports only tvm, so that it can be used in any TVM project:

    for rule in RULES(target):
        schedule = rule.apply(func, target, False)
        if schedule is not None:
            break

`apply_rules(target)` is the same as a pass over a whole module.
"""

from __future__ import annotations

import tvm
from tvm import ir, tirx
from tvm.target import Target

from .rule import Answer, Rule

__all__ = ["RULES", "Answer", "Rule", "apply_rules"]


def RULES(target: Target) -> list[Rule]:
    """The rules for `target`, most special first, the one that always applies last."""
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


def apply_rules(target: Target) -> tvm.ir.transform.Pass:
    """A module pass: every PrimFunc not yet scheduled gets the first rule's answer."""

    @tvm.ir.transform.module_pass(opt_level=0, name="ApplyRules")
    def run(mod: ir.IRModule, _: tvm.ir.transform.PassContext) -> ir.IRModule:
        rules, out = RULES(target), {}
        for gvar, func in mod.functions_items():
            if not isinstance(func, tirx.PrimFunc) or func.attrs.get("tirx.is_scheduled", 0):
                continue
            answers = (rule.apply(func, target, False) for rule in rules)
            answer = next((a for a in answers if a is not None), None)
            if answer is not None:
                best = answer[0] if isinstance(answer, list) else answer
                out[gvar] = best.mod["main"].with_attr("tirx.is_scheduled", True)
        for gvar, func in out.items():
            mod.update_func(gvar, func)
        return mod

    return run

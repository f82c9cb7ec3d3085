"""The contract of a schedule rule.

A rule looks at one fused TIR function and answers with a schedule of it, or with `None` ("not
mine"); the pipeline asks the rules of `RULES(target)` in order and takes the first answer. A rule
may transform the function it is given or write a wholly new body for it, as long as parameters
and meaning stay. Rules never look at names: a function is recognised by what it computes.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from tvm import s_tir, tirx
from tvm.target import Target

Answer: TypeAlias = s_tir.Schedule | list[s_tir.Schedule] | None


class Rule(Protocol):
    """What the pipeline asks of a rule (the same call as TVM's own `ScheduleRule`)."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> Answer:
        """Return a schedule of `func` for `target`, or `None` when the rule does not apply."""
        ...

"""The contract of a schedule rule.

A rule looks at one fused TIR function and answers with a schedule of it, or with `None` ("not
mine"); the pipeline asks the rules of `RULES(target)` in order and takes the first answer. A rule
may transform the function it is given or write a wholly new body for it, as long as parameters
and meaning stay. Rules never look at names: a function is recognised by what it computes.

A rule may also say why: its `claim` gives reasons, as a source format's `evidence` does. `apply` is
all that must be there, so TVM's own rules are rules too, and `claim_of` asks any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tvm import s_tir, tirx
from tvm.target import Target

from .by_rows import Kernels
from .contraction import Contraction

Answer: TypeAlias = s_tir.Schedule | list[s_tir.Schedule] | None


@dataclass(frozen=True)
class Claim:
    """What speaks for and against a rule for one function; it applies when nothing speaks against.

    A rule for layers says which `kernels` it takes for how many rows, and why none of those that it
    `passed_over` ("kernel: reason"), which would be faster.
    """

    supports: tuple[str, ...] = ()
    contradicts: tuple[str, ...] = ()
    layer: Contraction | None = None
    kernels: Kernels = ()
    passed_over: tuple[str, ...] = ()

    @property
    def applies(self) -> bool:
        return bool(self.supports) and not self.contradicts


class Rule(Protocol):
    """What the pipeline asks of a rule (the same call as TVM's own `ScheduleRule`)."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> Answer:
        """Return a schedule of `func` for `target`, or `None` when the rule does not apply."""
        ...


def claim_of(rule: Rule, func: tirx.PrimFunc, target: Target) -> Claim:
    """The rule's claim; of a rule that makes none, what its `apply` shows."""
    claim = getattr(rule, "claim", None)
    if claim is not None:
        found: Claim = claim(func, target)
        return found
    if rule.apply(func, target, False) is None:
        return Claim(contradicts=("it makes no schedule of this function",))
    return Claim(supports=("it makes a schedule of this function",))


def objections(*conditions: tuple[bool, str]) -> tuple[str, ...]:
    """What speaks against something: the text beside every condition that does not hold."""
    return tuple(text for holds, text in conditions if not holds)

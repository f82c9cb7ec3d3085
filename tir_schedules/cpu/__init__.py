"""Schedules for CPUs (TVM's `llvm` target), first match wins.

One file per kernel shape; linear layers first because they are recognised most strictly.
"""

from __future__ import annotations

from ..rule import Rule
from .fallback import Fallback
from .linear import Linear

RULES: tuple[Rule, ...] = (
    Linear(),
    # norms, rope, activations, softmax, attention and sampling come here
    Fallback(),
)

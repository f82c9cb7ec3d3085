"""Schedules for CPUs (TVM's `llvm` target), first match wins.

One file per kernel shape; linear layers first because they are recognised most strictly.
"""

from __future__ import annotations

from ..rule import Rule
from .experts import Experts
from .fallback import Fallback
from .linear import Linear
from .rows import Rows

RULES: tuple[Rule, ...] = (
    Linear(),
    Experts(),
    Rows(),
    Fallback(),
)

"""Schedules for GPUs, first match wins; TVM's own rules follow them."""

from __future__ import annotations

from ..rule import Rule
from .linear import Linear

RULES: tuple[Rule, ...] = (Linear(),)

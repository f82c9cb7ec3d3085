"""Rotary embedding as data: which angle every pair of dimensions turns by at a position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LongRope:
    """Divisors of the frequencies: ``short`` up to ``trained`` tokens of a sequence, else ``long``.

    Cosine and sine are multiplied by ``amplitude``, whichever list is used.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained: int
    amplitude: float


@dataclass(frozen=True)
class Rope:
    """Base, position scale, rotated width (None: the whole head) and what bends the frequencies.

    ``scaling`` is MLC's block, as sorted items, for the kernels that know it (``llama3``).
    """

    theta: float
    scale: float = 1.0
    scaling: tuple[tuple[str, Any], ...] | None = None
    rotary_dim: int | None = None
    lists: LongRope | None = None

    @property
    def of_sequences(self) -> bool:
        """Whether a row's angles depend on its sequence; the runtime's cache does not know that."""
        return self.lists is not None


def frozen(block: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...] | None:
    """A scaling block as ``Rope.scaling`` holds it."""
    return None if block is None else tuple(block.items())

"""Rotary embedding as data: which angle every pair of dimensions turns by at a position.

    angle[p, j] = p * rate[j],    rate[j] = scale / theta^(2 j / width)

``yarn`` (NTK by parts) divides only the slow frequencies by its factor: pairs up to ``low`` keep
their rate, those beyond ``high`` are interpolated, those between blend; ``llama3`` blends by turns
within the trained length. yarn and ``longrope`` multiply cosine and sine by an amplitude. Pairs are
halves (j, j + width/2), or neighbours (2 j, 2 j + 1) where ``interleaved``.

``dynamic`` (NTK) stretches the base for a sequence of n tokens, more than the trained length:

    theta(n) = theta g^(width / (width - 2)),    g = factor n / trained - (factor - 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlc_bridge.packing import Array

KINDS = ("linear", "llama3", "yarn", "dynamic")
"""What ``rope_of`` can make, beside the plain one."""


@dataclass(frozen=True)
class LongRope:
    """Divisors of the frequencies: ``short`` up to ``trained`` tokens of a sequence, else ``long``.

    Cosine and sine are multiplied by ``amplitude``, whichever list is used.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained: int
    amplitude: float

    @property
    def both(self) -> tuple[tuple[float, ...], ...]:
        return self.short, self.long


@dataclass(frozen=True)
class Yarn:
    """Rates of pairs between ``low`` and ``high`` go over to 1 / ``factor`` of themselves."""

    factor: float
    low: float
    high: float
    amplitude: float


@dataclass(frozen=True)
class Rope:
    """Base, position scale, rotated width (None: the whole head) and what bends the frequencies.

    ``scaling`` is MLC's block, as items, for the kernels that know it (``llama3``).
    """

    theta: float
    scale: float = 1.0
    scaling: tuple[tuple[str, Any], ...] | None = None
    rotary_dim: int | None = None
    lists: LongRope | None = None
    yarn: Yarn | None = None
    interleaved: bool = False
    dynamic: tuple[float, int] | None = None
    """Factor and trained length."""
    before_norm: bool = False
    """Queries and keys are rotated first, then normed."""
    growth: tuple[float, int] | None = None
    """(beta, n): queries at position p are multiplied by 1 + beta ln(1 + floor(p / n))."""

    @property
    def in_graph(self) -> bool:
        """Whether the runtime's cache, which rotates plainly, cannot do it."""
        more = (self.lists, self.yarn, self.dynamic, self.growth)
        return self.interleaved or self.before_norm or any(kind is not None for kind in more)

    @property
    def amplitude(self) -> float:
        bent = self.lists or self.yarn
        return bent.amplitude if bent else 1.0

    def rates(self, head_dim: int) -> Array:
        """``float32 [lists, width / 2]``: the angles at position 1; two lists for longrope."""
        width = self.rotary_dim or head_dim
        powers = np.arange(0, width, 2, dtype=np.int64).astype(np.float32) / np.float32(width)
        rates = np.float32(self.scale) / np.float32(self.theta) ** powers
        if self.lists is not None:
            return np.stack([rates / np.array(f, "float32") for f in self.lists.both])
        if self.yarn is not None:
            return self._blended(rates)[None]
        return (rates if self.scaling is None else _llama3(rates, dict(self.scaling)))[None]

    def _blended(self, rates: Array) -> Array:
        assert self.yarn is not None
        low, high = self.yarn.low, self.yarn.high
        pairs = np.arange(rates.shape[0], dtype=np.float32)
        slow = np.clip((pairs - low) / (max(high - low, 0) or 0.001), 0, 1).astype(np.float32)
        return rates / np.float32(self.yarn.factor) * slow + rates * (1 - slow)


def _llama3(rates: Array, block: Mapping[str, Any]) -> Array:
    """Rates that turn less than ``low`` times in the trained length are divided, fast ones kept."""
    low, high = block["low_freq_factor"], block["high_freq_factor"]
    turns = block["original_max_position_embeddings"] * rates / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return rates / np.float32(block["factor"]) * (1 - kept) + rates * kept


def rope_of(
    theta: float, scaling: Mapping[str, Any] | None, width: int, *, interleaved: bool = False
) -> Rope:
    """From a base and a scaling block of one of ``KINDS``; ``width`` dimensions are rotated."""
    kind = scaling["rope_type"] if scaling else "default"
    plain = Rope(theta, rotary_dim=width, interleaved=interleaved)
    if scaling is None or kind == "default":
        return plain
    if kind == "linear":
        return replace(plain, scale=1.0 / scaling["factor"])
    if kind == "llama3":
        return replace(plain, scaling=frozen(scaling))
    if kind == "dynamic":
        trained = scaling["original_max_position_embeddings"]
        return replace(plain, dynamic=(scaling["factor"], trained))
    return replace(plain, yarn=_yarn(theta, scaling, width))


def stretched(theta: float, growth: float, width: int) -> float:
    """The base whose slowest pair turns ``growth`` times more slowly, the fastest as before."""
    return theta * growth ** (width / (width - 2))


def _yarn(theta: float, scaling: Mapping[str, Any], width: int) -> Yarn:
    """Pairs that turn ``beta_fast`` times or more within the trained length are fast."""
    factor, trained = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair(turns: float) -> float:
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.get("beta_fast") or 32), pair(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    amplitude = scaling.get("attention_factor")
    if amplitude is None:
        some, every = scaling.get("mscale"), scaling.get("mscale_all_dim")
        amplitude = grown(some) / grown(every) if some and every else grown(1.0)
    return Yarn(float(factor), max(low, 0), min(high, width - 1), float(amplitude))


def frozen(block: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...] | None:
    """A scaling block as ``Rope.scaling`` holds it."""
    return None if block is None else tuple(block.items())

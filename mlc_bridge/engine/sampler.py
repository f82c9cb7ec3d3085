"""From logits to the next token, with MLC LLM's rules in MLC's order.

    1. logit_bias            logits[t] += bias
    2. penalties             for every token t that this answer already holds count[t] times:
                             logits[t] -= presence + frequency * count[t]
                             logits[t] *= repetition if negative, /= repetition if not
    3. grammar mask          forbidden tokens become -inf
    4. temperature, top_p    0 takes the largest logit; else p = softmax(logits / temperature), cut
    to
                             the fewest tokens whose sum reaches top_p, drawn with one uniform
                             number

Log probabilities are those of step 3 at temperature 1, so that they say the same for every
temperature (MLC reports them after the temperature, where greedy decoding always says 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mlc_bridge.packing import Array

_BLOCK = 256


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn. ``logprobs`` None: not wanted; else the number of alternatives."""

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    @property
    def has_penalty(self) -> bool:
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log probability of the chosen token, and the best alternatives in falling order."""

    chosen: float
    top: list[tuple[int, float]]


class Sampler:
    """Draws the tokens of one answer; the same seed and the same logits give the same tokens."""

    def __init__(self, sampling: Sampling, seed: int | None = None) -> None:
        self.sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._counts: dict[int, int] = {}
        self._bias = _sparse(sampling.logit_bias)

    def next(self, logits: Array, mask: Array | None = None) -> tuple[int, TokenLogprobs | None]:
        """Choose from float32 ``logits`` ``[vocab]`` (not changed); ``mask`` is True where
        allowed.
        """
        logits = self._adjusted(logits, mask)
        token = choose(logits, self.sampling.temperature, self.sampling.top_p, self._random)
        if self.sampling.has_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self.sampling.logprobs is None:
            return token, None
        return token, logprobs_of(logits, token, self.sampling.logprobs)

    def _adjusted(self, logits: Array, mask: Array | None) -> Array:
        s = self.sampling
        penalized = s.has_penalty and self._counts
        if not s.logit_bias and not penalized and mask is None:
            return logits
        logits = logits.copy()
        if s.logit_bias:
            ids, bias = self._bias
            logits[ids] += bias
        if penalized:
            ids, count = _sparse(self._counts)
            x = logits[ids] - (s.presence_penalty + s.frequency_penalty * count)
            logits[ids] = np.where(x < 0, x * s.repetition_penalty, x / s.repetition_penalty)
        if mask is not None:
            logits[~mask] = -np.inf
        return logits


def choose(logits: Array, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """One token id from ``logits`` ``[vocab]``."""
    if temperature < 1e-5 or top_p == 0:
        return int(logits.argmax())
    p = softmax(logits / np.float32(temperature))
    u = random.random()
    return _draw_top_p(p, top_p, u) if top_p < 1 else _draw(p, u)


def softmax(logits: Array) -> Array:
    """Over the last axis, float32."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logprobs_of(logits: Array, token: int, count: int) -> TokenLogprobs:
    """Log-softmax at ``token`` and at the ``count`` largest logits."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= np.log(np.exp(x).sum())
    top = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, np.int64)
    top = top[np.argsort(-logits[top], kind="stable")]
    return TokenLogprobs(float(x[token]), [(int(i), float(x[i])) for i in top])


def _draw_top_p(p: Array, top_p: float, u: float) -> int:
    """As ``_draw`` from the fewest tokens, most likely first, whose sum reaches ``top_p``."""
    # Tokens below (1 - top_p) / vocab cannot sum up to what may be cut; mostly fewer will do.
    for cutoff in (top_p / 1024, (1 - top_p) / p.size, 0.0):
        falling = p[p >= cutoff]
        if falling.sum() >= top_p:
            break
    falling = np.sort(falling)[::-1]
    mass = np.cumsum(falling, dtype=np.float64)
    last = min(int(np.searchsorted(mass, top_p)), mass.size - 1)
    place = int(np.searchsorted(mass, u * mass[last], side="right"))
    ids = np.flatnonzero(p == falling[place])
    if ids.size == 1:
        return int(ids[0])
    return int(ids[place - np.flatnonzero(falling == falling[place])[0]])


def _draw(p: Array, u: float) -> int:
    """Inverse of the cumulative distribution of ``p`` (any sum) at ``u`` in [0, 1).

    Sums of blocks first, then inside the one block that is hit; a token of probability zero is
    never taken, for the running sum must rise above the target there.
    """
    blocks = np.cumsum(np.add.reduceat(p, np.arange(0, p.size, _BLOCK)), dtype=np.float64)
    target = u * blocks[-1]
    hit = int(np.searchsorted(blocks, target, side="right"))
    inside = np.cumsum(p[hit * _BLOCK : (hit + 1) * _BLOCK], dtype=np.float64)
    left = target - (blocks[hit - 1] if hit else 0.0)
    left = min(left, np.nextafter(inside[-1], 0))  # the two ways of summing may differ in rounding
    return hit * _BLOCK + int(np.searchsorted(inside, left, side="right"))


def _sparse(table: Mapping[int, float]) -> tuple[Array, Array]:
    ids = np.fromiter(table.keys(), np.int64, len(table))
    return ids, np.fromiter(table.values(), np.float32, len(table))

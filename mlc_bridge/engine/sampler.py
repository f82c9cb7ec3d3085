"""From logits to the next token, with MLC LLM's rules in MLC's order.

    1. logit_bias            logits[t] += bias
    2. penalties             for every token t that this answer already holds count[t] times:
                             logits[t] -= presence + frequency * count[t]
                             logits[t] *= repetition if negative, /= repetition if not
    3. forbidden tokens      of the grammar and before ``min_tokens``: -inf
    4. temperature           0 takes the largest logit; else x = logits / temperature
    5. top_k, top_p, min_p   in this order, each on what the one before left: the k most likely; the
                             fewest whose sum reaches top_p; those of at least min_p * the largest
    6. draw                  argmax(x - log(-log u)), u uniform for every token id (Gumbel-max:
                             exactly a draw from softmax(x))

The noise depends on (seed, position in the answer) alone. Where two runs of the same tokens round
differently (other batch, other chunks), another token comes only if the two best are nearly equal:
0.07 to 0.34 % of draws where an inverse distribution function turned 4 to 9 %.

Log probabilities are those of step 3 at temperature 1, so that they say the same for every
temperature (MLC reports them after the temperature, where greedy decoding always says 0).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from mlc_bridge.packing import Array

_STEP = np.float32(2**-24)  # of a uniform float32 in [0, 1)
# The noise lies between -log(24 log 2) and 24 log 2: nothing this far below the best can win.
_REACH = np.float32(20)


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn. ``logprobs`` None: not wanted; else the number of alternatives."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
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
        self._noise = Noise(secrets.randbits(64) if seed is None else seed % 2**64)
        self._position = 0
        self._counts: dict[int, int] = {}
        self._bias = _sparse(sampling.logit_bias)

    def next(
        self, logits: Array, mask: Array | None = None, forbidden: Collection[int] = ()
    ) -> tuple[int, TokenLogprobs | None]:
        """Choose from float32 ``logits`` ``[vocab]`` (not changed); ``mask`` is True where
        allowed, ``forbidden`` are further ids that must not come.
        """
        logits = self._adjusted(logits, mask, forbidden)
        token = choose(logits, self.sampling, self._noise, self._position)
        self._position += 1
        if self.sampling.has_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self.sampling.logprobs is None:
            return token, None
        return token, logprobs_of(logits, token, self.sampling.logprobs)

    def _adjusted(self, logits: Array, mask: Array | None, forbidden: Collection[int]) -> Array:
        s = self.sampling
        penalized = s.has_penalty and self._counts
        if not s.logit_bias and not penalized and mask is None and not forbidden:
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
        if forbidden:
            logits[list(forbidden)] = -np.inf
        return logits


class Noise:
    """Uniform numbers for (position, token id), the same wherever they are asked for."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)
        self._random = np.random.Generator(self._bits)
        self._state = self._bits.state

    def at(self, position: int, size: int) -> Array:
        """float32 ``[size]``; positions are far apart in Philox's 256-bit counter."""
        self._state["state"]["counter"][:] = (0, 0, 0, position)
        self._bits.state = self._state
        return self._random.random(size, dtype=np.float32)


def choose(logits: Array, sampling: Sampling, noise: Noise, position: int) -> int:
    """One token id from ``logits`` ``[vocab]``."""
    if sampling.temperature < 1e-5 or sampling.top_p == 0 or sampling.top_k == 1:
        return int(logits.argmax())
    x = logits / np.float32(sampling.temperature)
    ids = _kept(x, sampling)
    if ids is None:
        ids = np.flatnonzero(x >= x.max() - _REACH)
    u = np.maximum(noise.at(position, x.size)[ids], _STEP)
    return int(ids[(x[ids] - np.log(-np.log(u))).argmax()])


def softmax(logits: Array) -> Array:
    """Over the last axis, float32."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logprobs_of(logits: Array, token: int, count: int) -> TokenLogprobs:
    """Log-softmax at ``token`` and at the ``count`` largest logits that are possible at all."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= np.log(np.exp(x).sum())
    count = min(count, logits.size)
    top = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, np.int64)
    top = top[np.argsort(-logits[top], kind="stable")]
    found = [(int(i), float(x[i])) for i in top if np.isfinite(x[i])]
    return TokenLogprobs(float(x[token]), found)


def _kept(x: Array, s: Sampling) -> Array | None:
    """Ids that may be drawn, most likely first; None for all."""
    if s.top_p >= 1 and not 0 < s.top_k < x.size and s.min_p <= 0:
        return None
    p = softmax(x)
    ids = _falling(p, s)
    if s.top_p < 1:
        mass = np.cumsum(p[ids], dtype=np.float64)
        whole = mass[-1] if s.top_k else 1.0
        ids = ids[: int(np.searchsorted(mass, s.top_p * whole)) + 1]
    return ids[p[ids] >= s.min_p * p[ids[0]]] if s.min_p > 0 else ids


def _falling(p: Array, s: Sampling) -> Array:
    """The ids that the cuts may leave, sorted by falling probability, equal ones by id."""
    if 0 < s.top_k < p.size:
        ids = np.sort(np.argpartition(-p, s.top_k - 1)[: s.top_k])
        return ids[np.argsort(-p[ids], kind="stable")]
    # Tokens below (1 - top_p) / vocab cannot sum up to what may be cut; mostly fewer will do.
    for cutoff in (0.01, s.top_p / 1024, (1 - s.top_p) / p.size, 0.0):
        ids = np.flatnonzero(p >= cutoff)
        if p[ids].sum() >= s.top_p:
            break
    return ids[np.argsort(-p[ids], kind="stable")]


def _sparse(table: Mapping[int, float]) -> tuple[Array, Array]:
    ids = np.fromiter(table.keys(), np.int64, len(table))
    return ids, np.fromiter(table.values(), np.float32, len(table))

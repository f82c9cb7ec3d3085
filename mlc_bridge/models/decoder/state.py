"""What the runtime must hold for a layer between two steps."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder.rope import Rope


@dataclass(frozen=True)
class KVPages:
    """Keys and values of all past tokens, in the runtime's paged cache.

    The cache rotates queries and keys by ``rope``, unless it is None. ``window`` is what a local
    layer sees of the past; ``score_cap`` bounds scores: cap * tanh(score / cap).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    score_cap: float | None = None
    sinks: bool = False
    """The last of every group of query heads tells the log-sum-exps (``sinks.py``)."""


@dataclass(frozen=True)
class Held:
    """One array of ``size`` elements for every sequence; of the model dtype unless it is told."""

    size: int
    dtype: str | None = None


@dataclass(frozen=True)
class Recurrent:
    """What a recurrence has made of all past tokens, in the runtime's RNN state; zero at first.

    Its size does not grow with the sequence, and what has been read cannot be taken back.
    """

    arrays: tuple[Held, ...]


State = KVPages | Recurrent

"""Which ids are tokens: a model's vocabulary has padding at its end, and may have holes.

    0 .. size - 1   rows of the embedding; any other id would read memory that is not the model's
    0 .. end - 1    up to the highest id with a token; what follows is padding
    known           False at the holes below ``end``; None where there are none

Padding was never trained: its logits are noise, so no answer may hold it. An id that ends an answer
is a token whether or not the tokenizer knows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mlc_bridge.errors import EngineError
from mlc_bridge.packing import Array


@dataclass(frozen=True)
class Vocabulary:
    """See the module docstring; ``of`` makes one."""

    size: int
    end: int
    known: Array | None

    @classmethod
    def of(cls, size: int, tokens: Iterable[int]) -> Vocabulary:
        """From the ids that are tokens, those beyond ``size`` left out; without any, all are."""
        known = np.zeros(size, bool)
        known[[t for t in tokens if 0 <= t < size]] = True
        if not known.any():
            known[:] = True
        end = int(known.nonzero()[0][-1]) + 1
        return cls(size, end, None if known[:end].all() else known[:end])

    def allowed(self, mask: Array | None) -> Array | None:
        """True for the ids below ``end`` that may be drawn, given a grammar's ``mask`` ``[size]``.

        None when all may.
        """
        if mask is None:
            return self.known
        mask = mask[: self.end]
        return mask if self.known is None else mask & self.known


def check_ids(ids: Collection[int], size: int, where: str) -> None:
    """Raise EngineError for an id that is no row of an embedding of ``size`` rows."""
    if ids and (min(ids) < 0 or max(ids) >= size):
        raise EngineError(
            "an id that the model does not have",
            where=where,
            found=next(i for i in ids if not 0 <= i < size),
            expected=f"0 to {size - 1}",
        )


def within(ids: Sequence[int], size: int) -> list[int]:
    """The ids that a model of ``size`` rows can give."""
    return [i for i in ids if 0 <= i < size]

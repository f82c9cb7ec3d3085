"""How hard a layer's input is to quantize: what msModelSlim leaves in float by (``disable_level``).

    level       max|x| / std, std the largest of the samples' std(x - shift), shift = max_c + min_c
    threshold   2 max|x| / 254 / (x[3/4] - x[1/4] + 1e-10) on every 100th of the sorted values

The first five samples count. Layers with one input have one score; the sort is stable, so a level
may part them, as the tool does.

Origin: msModelSlim 26.1.0, Calibrator and LayerSelector ("std", "quantile").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_bridge.quantizers.recipe import Keep

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 5
EVERY = 100


@dataclass
class Score:
    """Running score of one input."""

    largest: float = 0.0
    std: float = 0.0
    quantile: float = 0.0
    samples: int = 0

    def add(self, x: Tensor) -> None:
        """One sample ``[tokens, k]``."""
        if self.samples == SAMPLES:
            return
        self.samples += 1
        self.largest = max(self.largest, float(x.abs().max()))
        self.std = max(self.std, float((x - (x.amax(0) + x.amin(0))).std()))
        ordered = x.reshape(-1).sort().values[::EVERY]
        spread = float(ordered[len(ordered) * 3 // 4] - ordered[len(ordered) // 4])
        largest = float(x.abs().max())
        self.quantile = max(self.quantile, 2 * largest / 254 / (spread + 1e-10))

    @property
    def level(self) -> float:
        return self.largest / max(self.std, 1e-30)


def chosen(
    keep: Keep,
    named: frozenset[str],
    head: frozenset[str],
    scores: Mapping[str, Score],
    order: Sequence[str],
) -> frozenset[str]:
    """Layers left in float: ``named`` above the threshold, ``head``, and the ``level`` highest."""
    floats = set(named)
    if keep.threshold > 0:
        floats = {n for n in named if n in scores and scores[n].quantile > keep.threshold}
    floats |= head
    rest = [n for n in order if n not in floats]
    rest.sort(key=lambda n: scores[n].level, reverse=True)
    return frozenset(floats | set(rest[: keep.level]))

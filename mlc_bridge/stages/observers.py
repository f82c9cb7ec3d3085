"""What calibration remembers of a layer's inputs, and the scales that can be read off it.

A float16 (or bfloat16) activation takes one of 32768 magnitudes, so counting each of them keeps the
whole distribution without loss: 256 KiB a layer, however much data passes. Counts add up in any
order, so batches, interruptions and restarts cannot change a result, and every observer is read off
the same counts afterwards. Of float32 activations the upper half of the bits is counted; ``amax``
is exact for all types.

    amax(layer)  = max |x|
    scale        = clip / 448           clip = the largest |x| that is still represented

=============  ===================================================================================
observer       clip
=============  ===================================================================================
``max``        amax: nothing saturates (MLC's choice)
``percentile`` the magnitude that 99.99 % of the values do not exceed
``mse``        of 64 clips from amax down to amax / 16, the one with the least mean square error
               of x - scale * e4m3(x / scale) over the counted values
=============  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import ml_dtypes
import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.record import Record
from mlc_bridge.schemes.float8 import E4M3

BINS = 1 << 15
PERCENTILE = 0.9999
SMALLEST_SCALE = 1 / (E4M3.largest * 512)
"""MLC's floor for a scale; a layer whose inputs are all zero gets it."""
OVERFLOW = E4M3.largest + 16
"""Half a step above the largest value: up to here rounding, not saturation, gives 448."""
_SLAB = 1 << 20


@dataclass
class Histogram:
    """Counts of the magnitudes a layer's input took; ``kind`` is the input's dtype."""

    kind: str = "float16"
    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    largest: float = 0.0
    """max |x| of float32 inputs, whose bins are coarse; unused for the others."""

    def add(self, x: Array) -> None:
        """Count every value of ``x`` (any shape; one dtype per histogram)."""
        self.kind = x.dtype.name
        flat = x.reshape(-1)
        for start in range(0, flat.size, _SLAB):
            part = flat[start : start + _SLAB]
            if part.dtype == np.float32:
                finite = np.abs(part[np.isfinite(part)])
                self.largest = max(self.largest, float(finite.max(initial=0)))
                bins = (part.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
            else:
                bins = part.view(np.uint16)
            self.counts += np.bincount(bins & np.uint16(0x7FFF), minlength=BINS)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def nonfinite(self) -> int:
        """How many inputs were infinite or NaN."""
        return int(self.counts[~np.isfinite(self._values)].sum())

    @property
    def amax(self) -> np.float32:
        """The largest finite |x|."""
        values, _ = self.occupied()
        return max(np.float32(self.largest), np.float32(values.max(initial=0)))

    def occupied(self) -> tuple[Array, Array]:
        """Finite magnitudes that occurred, rising, and how often; float32 and int64."""
        seen = (self.counts > 0) & np.isfinite(self._values)
        return self._values[seen], self.counts[seen]

    @property
    def _values(self) -> Array:
        kind = np.float16 if self.kind == "float16" else ml_dtypes.bfloat16
        return np.arange(BINS, dtype=np.uint16).view(kind).astype(np.float32)


@dataclass(frozen=True)
class Fit(Record):
    """How well a scale represents what a layer saw; rates are parts of all values."""

    scale: Annotated[float, "Scale of the input."]
    saturated: Annotated[float, "Part of all values that would round above 448 * scale."]
    vanished: Annotated[float, "Part of all values other than 0 that become 0."]
    error: Annotated[float, "Mean square of x - scale * e4m3(x / scale), over that of x."]


def by_max(seen: Histogram) -> float:
    return float(seen.amax)


def by_percentile(seen: Histogram) -> float:
    values, counts = seen.occupied()
    if not len(values):
        return 0.0
    rank = np.searchsorted(np.cumsum(counts), PERCENTILE * counts.sum())
    return float(values[rank])


def by_mse(seen: Histogram) -> float:
    if seen.amax == 0:
        return 0.0
    values, counts = seen.occupied()
    clips = float(seen.amax) * np.exp2(-np.arange(64) / 16)
    errors = [_square_error(values, counts, np.float32(clip / E4M3.largest)) for clip in clips]
    return float(clips[int(np.argmin(errors))])


OBSERVERS: dict[str, Callable[[Histogram], float]] = {
    "max": by_max,
    "percentile": by_percentile,
    "mse": by_mse,
}


def scale_of(seen: Histogram, observer: str) -> np.float32:
    """The scale the observer chooses, float32; never below MLC's floor."""
    clip = np.float32(OBSERVERS[observer](seen))
    return max(clip / np.float32(E4M3.largest), np.float32(SMALLEST_SCALE))


def fit(seen: Histogram, scale: np.float32) -> Fit:
    """What ``scale`` does to the values that were counted."""
    values, counts = seen.occupied()
    total = max(int(counts.sum()), 1)
    over = counts[values / scale > OVERFLOW].sum()
    gone = counts[(values > 0) & (E4M3.round(values / scale).astype(np.float32) == 0)].sum()
    power = float(np.sum(counts * np.square(values, dtype=np.float64)))
    error = _square_error(values, counts, scale) / power if power else 0.0
    return Fit(float(scale), float(over / total), float(gone / total), error)


def _square_error(values: Array, counts: Array, scale: np.float32) -> float:
    back = E4M3.round(values / scale).astype(np.float64) * float(scale)
    return float(np.sum(counts * np.square(values - back)))

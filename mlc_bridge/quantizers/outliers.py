"""msModelSlim's m5 (CBQ): scale the outlier channels, and only these.

On the channels' maxima, and on their minima turned positive:

    coarse outliers   above q80 + 1.5 (q80 - q20)
    fine outliers     of these the upper part, split where (distance of the parts' nearest values)^2
                      minus the variance of the lower part is largest
    s_c = (extreme_c / largest that is no outlier)^0.7, at least 1; the larger of both sides

Origin: arXiv 2312.07950; msModelSlim 26.1.0, anti_outlier/cbq.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor

POWER = 0.7
REACH = 1.5


def outliers(stats: Stats) -> Tensor:
    """The scale ``[k]``."""
    torch = torch_here()
    return torch.maximum(_side(stats.top), _side(-stats.bottom))


def _side(extremes: Tensor) -> Tensor:
    torch = torch_here()
    q20, q80 = (extremes.quantile(q) for q in (0.2, 0.8))
    coarse = extremes > q80 + REACH * (q80 - q20)
    one = torch.ones_like(extremes)
    if not bool(coarse.any()):
        return one
    found = coarse & (extremes >= _split(extremes[coarse].sort().values))
    inside = extremes[~found].max()
    return torch.where(found, (extremes / inside).clamp(min=1).pow(POWER), one)


def _split(values: Tensor) -> Tensor:
    """The smallest of the upper part of ascending ``values``."""
    best, least = values[0], -float("inf")
    for i in range(len(values)):
        lower = values[:i]
        distance = float((values[i] - lower[-1]) ** 2) if i else 0.0
        variance = float(lower.var(unbiased=False)) if i else 0.0
        if distance - variance > least:
            best, least = values[i], distance - variance
    return best

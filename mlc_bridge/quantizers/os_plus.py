"""Outlier Suppression+: scale down the channels that leave a range t, found by a search.

    s_c(t) = max(1, max x_c / t, min x_c / -t)
    t = argmin over max|x| ... 1 of mean |f(x; W) - f(q(x / s); Q(W s))|^2

in max(100, max|x| / 0.5) steps, with inputs rounded by token as they will be at run time. The
original's shift needs a bias on every layer; models without one (all here) have none.

Origin: LLMC's OsPlus, arXiv 2304.09145.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.grid import Store, fit
from mlc_bridge.quantizers.recipe import Grid
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[..., float]


def os_plus(
    weights: Sequence[Tensor], stats: Stats, grid: Grid, store: Store, loss: Loss
) -> Tensor:
    """The best scale ``[k]``; ``loss`` of rounded weights and of the scale that divides x."""
    torch = torch_here()
    top = max(float(stats.top.max()), -float(stats.bottom.min()), 0.0)
    steps = max(100, int(max(float(stats.top.max()), 0.0) / 0.5))
    best, least = torch.ones_like(stats.mean), float("inf")
    at, step = top, (top - 1.0) / steps
    while at >= 1.0:
        s = scale_into(stats, at)
        found = loss([fit(w * s, grid, store).nearest(w * s) for w in weights], s)
        if found < least:
            best, least = s, found
        if step <= 0:
            break
        at -= step
    return best


def scale_into(stats: Stats, t: float) -> Tensor:
    """What brings every channel into -t .. t, ``[k]``."""
    torch = torch_here()
    one = torch.ones_like(stats.top)
    return torch.maximum(torch.maximum(one, stats.top / t), torch.maximum(one, stats.bottom / -t))

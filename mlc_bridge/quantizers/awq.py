"""Activation-aware weight scaling: channels that see large activations are rounded more finely.

    x_c = mean|x_c|        w_c = mean over rows of |W_nc| / max of its group in row n
    v1: s = clamp(x^r / w^(1-r), 1e-4)     v2: s = clamp(x^r, 1e-4)     then s /= sqrt(max s min s)
    r = argmin over 0, 1/20 ... 19/20 of mean (f(x; W) - f(x; Q(W s) / s))^2

f is the output of the module that holds the layers: attention, the MLP; for one layer alone
(o_proj, down_proj) the loss is trace(D H D^T), D the weights' error and H the Gram matrix, which
needs no second look at the tokens. The mean is over all batches.

Origin: LLMC's Awq (LightCompress 9701d03), arXiv 2306.00978; AutoAWQ differs in v1's 1e-4 below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.grid import Store, fit, split
from mlc_bridge.quantizers.recipe import Awq, Grid
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-4


def weight_share(weights: Sequence[Tensor], grid: Grid) -> Tensor:
    """w_c: how much of its group's range a channel takes, mean over rows and layers, ``[k]``."""
    torch = torch_here()
    shares = []
    for w in weights:
        groups = split(w, grid).abs()
        shares.append((groups / groups.amax(-1, keepdim=True)).reshape(w.shape).mean(0))
    return torch.stack(shares).mean(0)


def candidates(weights: Sequence[Tensor], mean: Tensor, grid: Grid, how: Awq) -> list[Tensor]:
    """The scales ``[k]`` of every step of the search."""
    share = weight_share(weights, grid) if how.version == "v1" else None
    found = []
    for i in range(how.steps):
        r = i / how.steps
        s = mean.pow(r) if share is None else mean.pow(r) / share.pow(1 - r)
        s = s.clamp(min=LEAST)
        found.append(s / (s.max() * s.min()).sqrt())
    return found


def awq(
    weights: Sequence[Tensor],
    stats: Stats,
    grid: Grid,
    how: Awq,
    store: Store,
    loss: Callable[[Sequence[Tensor]], float] | None = None,
) -> Tensor:
    """The best scale ``[k]`` of layers that share an input.

    ``loss``: how wrong the module that holds them is with these weights; without one the layers
    stand alone.
    """
    torch = torch_here()
    best, least = torch.ones_like(stats.mean), float("inf")
    for s in candidates(weights, stats.mean, grid, how):
        near = [fit(w * s, grid, store).nearest(w * s) / s for w in weights]
        found = alone(weights, near, stats) if loss is None else loss(near)
        if found < least:
            best, least = s, found
    return best


def alone(weights: Sequence[Tensor], near: Sequence[Tensor], stats: Stats) -> float:
    """Sum of squared errors of the layers' own outputs."""
    wrong = [a - b for a, b in zip(near, weights, strict=True)]
    return sum(float(((d @ stats.gram) * d).sum()) for d in wrong)

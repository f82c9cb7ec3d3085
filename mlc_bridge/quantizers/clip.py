"""Clip each group where that makes the layer's output truest (LLMC's weight_clip).

For row n and group g, with W' = Q(clamp(W, c min, c max)) and c = 1, 0.95 ... 0.55:

    error(c) = mean over tokens of ((W' - W)_g . x_g)^2 = (W' - W)_g H_g (W' - W)_g^T / tokens

with H_g the group's block of the Gram matrix: all tokens at the price of one product of ``[n, g]``
and ``[g, g]``, where the tool multiplies a subset of tokens out. ``steps`` may be finer.
Symmetric grids are clipped at +- c max|W|. Layers whose names hold q, k or query are left alone:
their product is not additive.

Origin: LLMC's AutoClipper (clip_version v1), AutoAWQ's _search_best_clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.grid import Store, from_range, split
from mlc_bridge.quantizers.recipe import Grid
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 10  # LLMC's
LEAST = 0.5
NOT_CLIPPED = ("q_", "k_", "query", "key", "qkv")


def is_clipped(name: str) -> bool:
    """LLMC's rule, by the last part of the layer's name."""
    return not any(part in name.rpartition(".")[2] for part in NOT_CLIPPED)


def clipped(w: Tensor, stats: Stats, grid: Grid, store: Store, steps: int = STEPS) -> Tensor:
    """``w`` ``[n, k]`` with each group clamped to its best range."""
    low, high = bounds(w, stats, grid, store, steps)
    groups = split(w, grid)
    return groups.clamp(low[..., None], high[..., None]).reshape(w.shape)


def bounds(
    w: Tensor, stats: Stats, grid: Grid, store: Store, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Lowest and highest kept weight, ``[n, groups]`` each."""
    torch = torch_here()
    if grid.granularity == "tensor":
        raise ConfigError("a clip search needs groups or channels", where="clip")
    groups = split(w, grid)
    blocks = gram_blocks(stats.gram, groups.shape[-1])
    low, high = groups.amin(-1), groups.amax(-1)
    if grid.symmetric:
        high = groups.abs().amax(-1)
        low = -high
    best_low, best_high, least = low, high, torch.full_like(low, torch.inf)
    for i in range(steps):
        keep = 1 - LEAST * i / steps
        a, b = low * keep, high * keep
        cut = groups.clamp(a[..., None], b[..., None])
        rows = cut.reshape(w.shape)
        affine = from_range(cut.amin(-1), cut.amax(-1), grid, store)
        wrong = split(affine.nearest(rows), grid) - groups
        error = torch.einsum("ngi,gij,ngj->ng", wrong, blocks, wrong)
        better = error < least
        least = torch.where(better, error, least)
        best_low, best_high = torch.where(better, a, best_low), torch.where(better, b, best_high)
    return best_low, best_high


def gram_blocks(gram: Tensor, width: int) -> Tensor:
    """The diagonal blocks ``[groups, width, width]`` of a Gram matrix."""
    k = gram.shape[0]
    torch = torch_here()
    return torch.stack([gram[i : i + width, i : i + width] for i in range(0, k, width)])

"""W4A8 in two levels (QServe): 4-bit groups of an int8 channel, so that the product stays integer.

    s1 = max|w| / 119 by channel     I8 = round(w / s1)
    s2 = round(max|I8| / 7) by group, a whole number     I4 = round(I8 / s2) in -8 .. 7
    w' = I4 s2 s1

119 = 17 * 7 keeps I4 * s2 inside int8. As one grid the scale of a group is s1 * s2.

Origin: arXiv 2405.04532; msModelSlim 26.1.0 (W4A8_DYNAMIC).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.grid import Affine, split
from mlc_bridge.quantizers.recipe import Grid

if TYPE_CHECKING:
    from torch import Tensor

CHANNEL, GROUP = 119, 7


def progressive(w: Tensor, grid: Grid) -> tuple[Tensor, Affine, Tensor]:
    """Codes ``[n, k]`` (8 is zero), their grid, and s1 ``[n, 1]``."""
    torch = torch_here()
    first = w.abs().amax(1, keepdim=True).clamp(min=1e-10) / CHANNEL
    whole = split((w / first).round(), grid)
    second = (whole.abs().amax(-1) / GROUP).round().clamp(min=1)
    codes = (whole / second[..., None]).round().clamp(-GROUP - 1, GROUP) + grid.middle
    scale = second * first
    affine = Affine(scale, torch.full_like(scale, grid.middle), grid)
    return codes.reshape(w.shape), affine, first

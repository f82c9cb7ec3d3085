"""msModelSlim's sparse weights (W8A8S): a 4-bit grid, and outliers that are simply larger codes.

    s_row = largest |w| of the row that is no outlier / 7        q = round(w / s), not cut to 4 bits

Outliers, the old way (``co_sparse``): |w| above the int(numel fraction)-th largest of the whole
tensor. By row (``is_lowbit``): above the int(k fraction)-th largest of the row, or above
sigma std(|w|). The file is that of int8 weights, one scale a channel.

Origin: msModelSlim 26.1.0, its compiled modules' outputs explained to float precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.grid import Affine
from mlc_bridge.quantizers.recipe import Grid, Sparse

if TYPE_CHECKING:
    from torch import Tensor

TOP = 7


def sparse(w: Tensor, grid: Grid, how: Sparse) -> tuple[Tensor, Affine]:
    """Codes ``[n, k]`` (128 is zero) and their grid of 8 bits by channel."""
    torch = torch_here()
    size = w.abs()
    inside = size <= _threshold(size, how)
    scale = torch.where(inside, size, 0.0).amax(1, keepdim=True).clamp(min=1e-10) / TOP
    affine = Affine(scale, torch.full_like(scale, grid.middle), grid)
    return affine.encode(w), affine


def _threshold(size: Tensor, how: Sparse) -> Tensor:
    """The largest |w| that is no outlier; ``[n, 1]`` by row, ``[1, 1]`` for the whole tensor."""
    if how.sigma is not None:
        return how.sigma * size.std(1, keepdim=True)
    rows = size if how.per_row else size.reshape(1, -1)
    count = int(rows.shape[1] * how.fraction)
    ordered = rows.sort(1, descending=True).values
    return ordered[:, max(count - 1, 0)][:, None]

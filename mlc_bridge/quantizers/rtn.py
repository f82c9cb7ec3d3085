"""Round to nearest: every weight to the nearest point of its group's grid (``grid.py``).

Origin: LLMC's RTN, AutoAWQ's pseudo_quantize_tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc_bridge.quantizers.grid import Affine, Store, fit
from mlc_bridge.quantizers.recipe import Grid

if TYPE_CHECKING:
    from torch import Tensor


def rtn(w: Tensor, grid: Grid, store: Store) -> tuple[Tensor, Affine]:
    """Codes ``[n, k]`` and the grid of ``w`` ``[n, k]``."""
    affine = fit(w, grid, store)
    return affine.encode(w), affine

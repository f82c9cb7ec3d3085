"""Scales or zeros for smaller blocks: a coarse block is many fine ones with equal values."""

from __future__ import annotations

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor


def why_not(q: QTensor, group: int) -> str | None:
    """Why the blocks of ``q`` do not divide into rows of groups of ``group`` columns, or None."""
    k, width = q.shape[1], q.block[1]
    if width == group or (width % group == 0 and (k % group == 0 or width >= k)):
        return None
    if width >= k and k % group == 0:
        return None
    return f"groups of {width} do not divide into groups of {group}"


def regroup(grid: Array, q: QTensor, group: int) -> Array:
    """``grid`` ``[ceil(n/bn), ceil(k/bk)]`` of ``q`` as ``[n, ceil(k/group)]``.

    The grid itself where it has that shape. Keeps the memory order (AutoAWQ stores scales
    ``[k/g, n]``). Call ``why_not`` first.
    """
    (n, k), (rows, width) = q.shape, q.block
    groups = -(-k // group)
    if rows > 1:
        grid = np.repeat(grid, rows, axis=0)[:n]
    if grid.shape[1] == groups:
        return grid
    times = -(-min(width, k) // group)
    if grid.T.flags.c_contiguous:
        return np.repeat(grid.T, times, axis=0)[:groups].T
    return np.repeat(grid, times, axis=1)[:, :groups]

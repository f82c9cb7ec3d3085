"""What the families share about blocks: finer ones, values per element, scales in another dtype.

A coarse block is many fine ones with equal scale and zero, so a scheme with a finer group holds it
exactly.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes.model_dtype import NUMPY_DTYPES


def regroup(grid: Array, q: QTensor, group: int) -> Array:
    """``grid`` ``[ceil(n/bn), ceil(k/bk)]`` of ``q`` as ``[n, ceil(k/group)]``.

    The grid itself where it has that shape. Keeps the memory order (AutoAWQ stores scales
    ``[k/g, n]``). Ask ``misfit`` first.
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


def spread(grid: Array, q: QTensor) -> Array:
    """A value per block of ``q`` as a value per element ``[n, k]``."""
    (n, k), (rows, width) = q.shape, q.block
    return np.repeat(np.repeat(grid, rows, axis=0)[:n], width, axis=1)[:, :k]


def extremes(elements: Array, q: QTensor) -> tuple[Array, Array]:
    """Smallest and largest of ``elements`` ``[n, k]`` in every block of ``q``."""
    (n, k), (rows, width) = q.shape, q.block
    at_rows, at_columns = np.arange(0, n, rows), np.arange(0, k, width)

    def reduce(pick: np.ufunc) -> Array:
        return pick.reduceat(pick.reduceat(elements, at_rows, axis=0), at_columns, axis=1)

    return reduce(np.minimum), reduce(np.maximum)


def narrow_scale(q: QTensor, dtype: str, layer: str, scheme: str) -> Array:
    """The scales of ``q`` in the model dtype, each within half a unit of its last place.

    Raises CannotExpress where that cannot be: outside the dtype's normal range, unless every weight
    of the block is 0 whatever its scale (tools give dead groups a tiny one).
    """
    wanted = NUMPY_DTYPES[dtype]
    if q.scale.dtype == wanted:
        return q.scale
    size = np.abs(q.scale.astype(np.float64))
    limits = ml_dtypes.finfo(wanted)
    low, high = float(limits.smallest_normal), float(limits.max)
    bad = ~((size == 0) | ((size >= low) & (size <= high)))
    if bad.any():
        bad &= _alive(q)
    if bad.any():
        reason = f"scale {size[bad][0]:.3g} lies outside {dtype}'s normal range"
        raise CannotExpress(layer, scheme, reason)
    return np.clip(q.scale.astype(np.float32), -high, high).astype(wanted)


def _alive(q: QTensor) -> Array:
    """Blocks with a weight that is not 0."""
    low, high = extremes(q.codes.unpack().astype(np.float32), q)
    zero = np.float32(0) if q.zero is None else q.zero.unpack().astype(np.float32)
    return (low != zero) | (high != zero)

"""From weights to codes on a grid, and back.

    asymmetric   s = max(max w - min w, 1e-5) / (2^b - 1)   z = clamp(-round(min w / s))
    symmetric    s = max(max|w|, 1e-5) / (2^(b-1) - 1)      z = 2^(b-1)
    q = clamp(round(w / s) + z)                             w' = (q - z) s

clamp is to 0 .. 2^b - 1,
 round is to even. The range need not hold 0: a group of one sign keeps its scale and its zero is
clamped, as in AutoAWQ and LLMC. The scale is rounded to the dtype it is stored in before codes are
taken, so that codes are nearest under the scale that a reader sees.

Weights are float32 tensors ``[n, k]``; scales and zeros ``[n, k / g]`` (``[1, 1]`` per tensor).
Origin: LLMC's IntegerQuantizer (LightCompress 9701d03).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import ConfigError
from mlc_bridge.packing import Array, Packing, pack
from mlc_bridge.qtensor import QTensor
from mlc_bridge.quantizers.recipe import Grid

if TYPE_CHECKING:
    from torch import Tensor

Store = Callable[[Any], Any]
"""Rounds scales to what the file holds."""
SMALLEST = 1e-5
SHRINKS = 80  # candidates of fit "mse": the range times 1, 0.99 ... 0.21
POWER = 2.4


@dataclass(frozen=True)
class Affine:
    """Scale and zero (in code units, a whole number) of every group; ``grid`` says of which."""

    scale: Tensor
    zero: Tensor
    grid: Grid

    def encode(self, w: Tensor) -> Tensor:
        """Codes of ``w`` ``[n, k]``, whole numbers in float32."""
        groups = split(w, self.grid)
        codes = (groups / self.scale[..., None]).round() + self.zero[..., None]
        return codes.clamp(0, self.grid.top).reshape(w.shape)

    def decode(self, codes: Tensor) -> Tensor:
        groups = split(codes, self.grid)
        return ((groups - self.zero[..., None]) * self.scale[..., None]).reshape(codes.shape)

    def nearest(self, w: Tensor) -> Tensor:
        """The weights of the grid nearest to ``w``."""
        return self.decode(self.encode(w))

    def column(self, i: int) -> Affine:
        """Scale and zero of input column ``i``, for weights ``[n, 1]``."""
        group = i // self.grid.group_size if self.grid.granularity == "group" else 0
        one = slice(group, group + 1)
        grid = self.grid.model_copy(update={"group_size": 1, "granularity": "group"})
        return Affine(self.scale[:, one], self.zero[:, one], grid)


def unrounded(scale: Tensor) -> Tensor:
    return scale


def split(w: Tensor, grid: Grid) -> Tensor:
    """``w`` ``[n, k]`` as ``[n, groups, g]``; ``[1, 1, n k]`` per tensor."""
    n, k = w.shape
    if grid.granularity == "tensor":
        return w.reshape(1, 1, n * k)
    return w.reshape(n, -1, grid.width(k))


def fit(w: Tensor, grid: Grid, store: Store = unrounded) -> Affine:
    """The grid's scales for ``w``; ``store`` rounds them to what the file holds."""
    groups = split(w, grid)
    low, high = groups.amin(-1), groups.amax(-1)
    if grid.fit == "mse":
        return _smallest_error(groups, low, high, grid, store)
    return from_range(low, high, grid, store)


def from_range(low: Tensor, high: Tensor, grid: Grid, store: Store = unrounded) -> Affine:
    """Scales and zeros for values between ``low`` and ``high``, both ``[n, groups]``."""
    import torch

    if grid.symmetric:
        largest = torch.maximum(low.abs(), high.abs()).clamp(min=SMALLEST)
        scale = store(largest / (grid.middle - 1))
        return Affine(scale, torch.full_like(scale, grid.middle), grid)
    scale = store((high - low).clamp(min=SMALLEST) / grid.top)
    return Affine(scale, (-(low / scale).round()).clamp(0, grid.top), grid)


def _smallest_error(groups: Tensor, low: Tensor, high: Tensor, grid: Grid, store: Store) -> Affine:
    """Each group's range times the factor with the smallest sum of |w' - w|^2.4."""
    import torch

    flat = grid.model_copy(update={"granularity": "group", "group_size": groups.shape[-1]})
    rows = groups.reshape(groups.shape[0], -1)
    best, error = from_range(low, high, grid, store), torch.full_like(low, torch.inf)
    for i in range(SHRINKS):
        keep = 1 - i / 100
        found = from_range(low * keep, high * keep, grid, store)
        near = Affine(found.scale, found.zero, flat).nearest(rows)
        e = (near - rows).abs().pow(POWER).reshape(groups.shape).sum(-1)
        better = e < error
        error = torch.where(better, e, error)
        best = Affine(torch.where(better, found.scale, best.scale),
                      torch.where(better, found.zero, best.zero), grid)  # fmt: skip
    return best


def qtensor(codes: Tensor, affine: Affine, dtype: np.dtype, perm: Array | None = None) -> QTensor:
    """The canonical form; scales in ``dtype``. ``codes`` ``[n, k]`` in stored column order."""
    n, k = codes.shape
    bits = affine.grid.bits
    word = 8 if bits == 8 else 32
    along_k, along_n = Packing(bits, "k", word_bits=word), Packing(bits, "n", word_bits=word)
    block = (n, k) if affine.grid.granularity == "tensor" else (1, affine.grid.width(k))
    return QTensor(
        codes=pack(codes.numpy().astype(np.uint8), along_k),
        scale=affine.scale.numpy().astype(dtype),
        zero=pack(affine.zero.numpy().astype(np.uint8), along_n),
        block=block,
        perm=perm,
    )


def check_fits(grid: Grid, name: str, shape: tuple[int, int]) -> None:
    """Raises ConfigError where groups do not divide the layer's input width."""
    if grid.granularity == "group" and shape[1] % grid.group_size:
        raise ConfigError(
            "the group does not divide the layer's input width",
            where=name,
            found=f"{shape[1]} input columns in groups of {grid.group_size}",
            todo="Choose a group size that divides it, or leave the layer in float",
        )

"""What one block of a tiled matrix product computes, and with which types.

The sides of a product lie in shared memory in 64 byte rows of k: 32 half values or 64 float8 ones.
`ldmatrix` and the fragments of `mma` only know 16-bit units, so float8 needs no other layout: its
`mma.m16n8k32` takes pairs of codes where `m16n8k16` takes half values.
"""

from __future__ import annotations

from dataclasses import dataclass

from .warp import WARP


@dataclass(frozen=True)
class Tile:
    """Outputs of a block, the grid of its warps over them, the type of both sides."""

    rows: int
    columns: int
    down: int
    across: int
    dtype: str = "float16"

    @property
    def threads(self) -> int:
        return self.down * self.across * WARP

    @property
    def unit(self) -> int:
        """Values in 16 bits."""
        return 2 if self.dtype.startswith("float8") else 1

    @property
    def depth(self) -> int:
        """Columns k of a tile."""
        return 32 * self.unit

    @property
    def step(self) -> int:
        """Columns k of one mma."""
        return 16 * self.unit

    @property
    def chunk(self) -> int:
        """Values of 16 bytes: what a thread copies at once, and the padding of a row."""
        return 8 * self.unit


SMALL = Tile(64, 64, 2, 2)
LARGE = Tile(128, 128, 2, 4)

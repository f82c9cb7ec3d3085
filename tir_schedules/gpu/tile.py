"""What one block of a tiled matrix product computes, and with which types.

The sides of a product lie in shared memory in rows of `span` bytes of k. With few rows of x only
the bytes under way count, and they are n * span whatever the shape of a tile: so the fewer rows,
the longer the span, as far as two tiles of each side fit 48 KiB.

`ldmatrix` and the fragments of `mma` only know 16-bit units, so float8 needs no other layout: its
`mma.m16n8k32` takes pairs of codes where `m16n8k16` takes half values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .warp import WARP


@dataclass(frozen=True)
class Tile:
    """Outputs of a block, the grid of its warps over them, span and type of both sides."""

    rows: int
    columns: int
    down: int
    across: int
    span: int
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
        return self.span // 2 * self.unit

    @property
    def step(self) -> int:
        """Columns k of one mma."""
        return 16 * self.unit

    @property
    def chunk(self) -> int:
        """Values of 16 bytes: what a thread copies at once, and the padding of a row."""
        return 8 * self.unit

    def fit(self, *runs: int) -> Tile:
        """The tile with the longest span, 64 bytes at least, of which every run is a multiple."""
        whole = all(run % self.depth == 0 for run in runs)
        return self if whole or self.span == 64 else replace(self, span=self.span // 2).fit(*runs)


TILES = (Tile(32, 32, 2, 2, 256), Tile(64, 64, 2, 2, 128), Tile(128, 128, 2, 4, 64))

"""Linear layer over many rows (prefill): tiles in shared memory, products on tensor cores.

    out[r0 + i, n0 + j] = finish(sum over tiles of k: X[i, k] * W[k, j])

A block makes `rows` x `columns` outputs, its warps a grid over them. Every step takes 32 columns k
of x and of the weight into shared memory as half types, dequantized once for all rows of the
block; `ldmatrix` hands them to `mma.m16n8k16` with float32 sums in registers. Two tiles are under
way, one barrier a step:

    wait for x of tile i; barrier            tile i is whole, nobody reads tile i - 1 any more
    start x of tile i + 1 (cp.async, 16 bytes a thread), load raw weights of tile i + 1 to registers
    multiply tile i
    dequantize tile i + 1 into the other half of shared memory

so that both latencies hide behind the products. Rows of shared memory are 8 values longer than
their content: eight rows at one column then lie in different banks. Rows of x past the last are
read as zero (cp.async fills), channels past the last repeat it and are not stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import warp

DEPTH = 32  # columns k of a tile
STEP = 16  # columns k of one mma
CHUNK = 8  # values of 16 bytes
PAD = 8


@dataclass(frozen=True)
class Tile:
    """Outputs of a block and the grid of its warps."""

    rows: int
    columns: int
    down: int
    across: int

    @property
    def threads(self) -> int:
        return self.down * self.across * warp.WARP


SMALL = Tile(64, 64, 2, 2)
LARGE = Tile(128, 128, 2, 4)


class Panel(Protocol):
    """A weight's way into shared memory, one object a block."""

    def shape(self) -> tuple[int, int]:
        """Of a tile in shared memory: `[k, n]` or `[n, k]`, without padding."""

    def fetch(self, k0: ir.Expr) -> None:
        """Load the raw weights of the tile that begins at column k0."""

    def store(self, shared: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        """Dequantize what was fetched for column k0 into `shared[stage]`."""


class Weight(Protocol):
    """A weight layout that can fill tiles."""

    @property
    def kn(self) -> bool:
        """Whether its tiles are `[k, n]`."""

    def panel(self, c: Contraction, tile: Tile, n0: ir.Expr, thread: ir.Expr) -> Panel:
        """The tiles from channel n0 on."""


def applies(c: Contraction) -> bool:
    """True where k is whole tiles and both sides are of one half type."""
    return c.x_dtype in warp.HALF and c.weight_dtype == c.x_dtype and c.k % DEPTH == 0


def emit_gemm(c: Contraction, weight: Weight, tile: Tile) -> None:
    """Emit the layer for any number of rows at the builder's current place."""
    blocks = [warp.ceil_div(c.rows, tile.rows), c.const(-(-c.n // tile.columns))]
    warps = tile.threads // warp.WARP
    with warp.kernel(c.index, blocks, warps) as (row_block, column_block, w, lane):
        r0, n0 = T.bind(row_block * tile.rows), T.bind(column_block * tile.columns)
        thread = T.bind(w * warp.WARP + lane)
        panel = weight.panel(c, tile, n0, thread)
        _Block(c, weight, panel, tile, r0, n0, w, lane, thread).run()


@dataclass(frozen=True)
class _Block:
    c: Contraction
    weight: Weight
    panel: Panel
    tile: Tile
    r0: ir.Expr
    n0: ir.Expr
    warp: ir.Expr
    lane: ir.Expr
    thread: ir.Expr

    @property
    def squares(self) -> tuple[int, int]:
        """mma tiles of a warp: 16 rows high, 8 columns wide."""
        return self.tile.rows // self.tile.down // 16, self.tile.columns // self.tile.across // 8

    def run(self) -> None:
        c, tile = self.c, self.tile
        down, across = self.squares
        x = warp.shared((2, tile.rows, DEPTH + PAD), c.x_dtype)
        outer, inner = self.panel.shape()
        w = warp.shared((2, outer, inner + PAD), c.x_dtype)
        acc = T.alloc_buffer((down, across, 4), "float32", scope="local")
        for at in self._sums():
            T.buffer_store(acc, tirx.const(0.0, "float32"), at)
        zero = c.const(0)
        self._fetch_x(x, zero, zero)
        self.panel.fetch(zero)
        self.panel.store(w, zero, zero)
        tiles = c.k // DEPTH
        with T.serial(0, c.const(tiles)) as i:
            stage = T.bind(i % 2)
            warp.wait_copies(0)
            warp.barrier()
            with T.If(i + 1 < tiles), T.Then():
                self._fetch_x(x, 1 - stage, (i + 1) * DEPTH)
                self.panel.fetch((i + 1) * DEPTH)
            self._multiply(acc, x, w, stage)
            with T.If(i + 1 < tiles), T.Then():
                self.panel.store(w, 1 - stage, (i + 1) * DEPTH)
        self._finish(acc)

    def _sums(self) -> list[list[int]]:
        down, across = self.squares
        return [[i, j, e] for i in range(down) for j in range(across) for e in range(4)]

    def _fetch_x(self, x: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        """Start bringing x[r0 ..., k0 ... k0 + 31] into `x[stage]`."""
        c, tile = self.c, self.tile
        chunks = DEPTH // CHUNK
        for j in range(tile.rows * chunks // tile.threads):
            row = T.bind((self.thread + j * tile.threads) // chunks)
            column = T.bind(self.thread % chunks * CHUNK)
            r = T.bind(self.r0 + row)
            inside = T.bind(tirx.min(r, c.rows - 1))
            k = T.bind(k0 + column)
            value = c.x(inside, k)
            if isinstance(value, TensorLoad):
                to = warp.address(x, [stage, row, column])
                size = tirx.Select(r < c.rows, tirx.IntImm("int32", 16), tirx.IntImm("int32", 0))
                warp.copy_rest_zero(to, warp.address(value.source, list(value.indices)), size)
            else:
                for e in range(CHUNK):
                    T.buffer_store(x, c.x(inside, k + e), [stage, row, column + e])
        warp.close_copies()

    def _multiply(self, acc: ir.Var, x: ir.Var, w: ir.Var, stage: ir.Expr) -> None:
        tile, lane = self.tile, self.lane
        down, across = self.squares
        first_row = T.bind(self.warp // tile.across * (down * 16))
        first_column = T.bind(self.warp % tile.across * (across * 8))
        square, line = T.bind(lane // 8), T.bind(lane % 8)
        low, high = T.bind(square % 2 * 8), T.bind(square // 2 * 8)
        for k in range(0, DEPTH, STEP):
            b = T.alloc_buffer((across // 2, 4), "uint32", scope="local")
            for j in range(across // 2):
                n = first_column + 16 * j
                # squares 0 and 1 are the two halves of k of one mma, 2 and 3 those of the next
                at = [k + low + line, n + high] if self.weight.kn else [n + high + line, k + low]
                source = warp.address(w, [stage, *at])
                warp.load_squares(warp.address(b, [j, 0]), source, transposed=self.weight.kn)
            for i in range(down):
                a = T.alloc_buffer((4,), "uint32", scope="local")
                source = warp.address(x, [stage, first_row + 16 * i + low + line, k + high])
                warp.load_squares(warp.address(a, [0]), source, transposed=False)
                left = [a[e] for e in range(4)]
                for j in range(across):
                    right = [b[j // 2, j % 2 * 2], b[j // 2, j % 2 * 2 + 1]]
                    warp.mma(self.c.x_dtype, warp.address(acc, [i, j, 0]), left, right)

    def _finish(self, acc: ir.Var) -> None:
        c, tile = self.c, self.tile
        down, across = self.squares
        g, t = T.bind(self.lane // 4), T.bind(self.lane % 4)
        row = T.bind(self.r0 + self.warp // tile.across * (down * 16) + g)
        column = T.bind(self.n0 + self.warp % tile.across * (across * 8) + 2 * t)
        for i, j, e in self._sums():
            r = T.bind(row + (16 * i + 8 * (e // 2)))
            n = T.bind(column + (8 * j + e % 2))
            with T.If(tirx.all(r < c.rows, n < c.n)), T.Then():
                c.put(r, n, acc[i, j, e])

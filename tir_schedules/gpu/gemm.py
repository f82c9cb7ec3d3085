"""Linear layer over many rows (prefill): tiles in shared memory, products on tensor cores.

    out[r0 + i, n0 + j] = finish(sum over tiles of k: X[i, k] * W[k, j])

A block makes `rows` x `columns` outputs, its warps a grid over them. Every step takes a span of k
of x and of the weight into shared memory, dequantized once for all rows of the block; `ldmatrix`
hands them to `mma` with float32 sums in registers. Two tiles are under way, one barrier a step:

    wait for x of tile i; barrier            tile i is whole, nobody reads tile i - 1 any more
    start x of tile i + 1 (cp.async, 16 bytes a thread), load raw weights of tile i + 1 to registers
    multiply tile i
    dequantize tile i + 1 into the other half of shared memory

so that both latencies hide behind the products. Rows of shared memory are 16 bytes longer than
their content: eight rows at one column then lie in different banks. Rows of x past the last are
read as zero (cp.async fills), channels past the last repeat it; neither is stored.

Both sides are of one type: float16 or bfloat16, what x is; or float8, see `operand`. An input that
is computed, or stored in another type, takes the road of the weights instead of cp.async.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import warp
from .panels import EvaluatedPanel, runs_along
from .tile import Tile

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


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


def operand(c: Contraction, capability: int) -> str | None:
    """The type of both sides in shared memory, or `None` when it would round.

    Two float8 sides are multiplied as float8 only where the instruction is one of the machine's:
    sm_89 and sm_120. For sm_90 and sm_100 ptxas makes two float16 products of every
    `mma.m16n8k32.e4m3`, and four conversions in every warp; float16 tiles convert once a block and
    are as exact, since float8 values are float16 ones and every product fits a float32.
    """
    if c.x_dtype in warp.HALF:
        return c.x_dtype if c.weight_dtype == c.x_dtype else None
    if c.x_dtype not in FLOAT8:
        return None
    plain = isinstance(c.weight, TensorLoad) and str(c.weight.ty) in FLOAT8
    if plain and str(c.weight.ty) == c.x_dtype and (capability == 89 or capability >= 120):
        return c.x_dtype
    return "float16" if plain or c.weight_dtype == "float16" else None


def emit_gemm(c: Contraction, weight: Weight, tile: Tile) -> None:
    """Emit the layer for any number of rows at the builder's current place."""
    blocks = [warp.ceil_div(c.rows, tile.rows), c.const(-(-c.n // tile.columns))]
    warps = tile.threads // warp.WARP
    with warp.kernel(c.index, blocks, warps) as (row_block, column_block, w, lane):
        r0, n0 = T.bind(row_block * tile.rows), T.bind(column_block * tile.columns)
        thread = T.bind(w * warp.WARP + lane)
        panel = weight.panel(c, tile, n0, thread)
        x_panel = _x_panel(c, tile, r0, thread)
        _Block(c, weight, panel, x_panel, tile, r0, n0, w, lane, thread).run()


def _x_panel(c: Contraction, tile: Tile, r0: ir.Expr, thread: ir.Expr) -> Panel | None:
    """The road of an input that cannot be copied as it is."""
    r, k = (tirx.Var(name, r0.ty) for name in "rk")
    x = c.x(r, k)
    if str(x.ty) == tile.dtype and runs_along(x, k, tile.chunk):
        return None
    return EvaluatedPanel(tile, x, r, k, False, tile.rows, r0, c.rows - 1, thread)


@dataclass(frozen=True)
class _Block:
    c: Contraction
    weight: Weight
    panel: Panel
    x_panel: Panel | None
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
        x = warp.by_address((2, tile.rows, tile.depth + tile.chunk), tile.dtype, "shared")
        outer, inner = self.panel.shape()
        w = warp.by_address((2, outer, inner + tile.chunk), tile.dtype, "shared")
        acc = T.alloc_buffer((down, across, 4), "float32", scope="local")
        for at in self._sums():
            T.buffer_store(acc, tirx.const(0.0, "float32"), at)
        zero = c.const(0)
        self._fetch(x, zero, zero)
        self._store(x, w, zero, zero)
        tiles = c.k // tile.depth
        with T.serial(0, c.const(tiles)) as i:
            stage = T.bind(i % 2)
            warp.wait_copies(0)
            warp.barrier()
            with T.If(i + 1 < tiles), T.Then():
                self._fetch(x, 1 - stage, (i + 1) * tile.depth)
            self._multiply(acc, x, w, stage)
            with T.If(i + 1 < tiles), T.Then():
                self._store(x, w, 1 - stage, (i + 1) * tile.depth)
        self._finish(acc)

    def _fetch(self, x: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        if self.x_panel is None:
            self._copy_x(x, stage, k0)
        else:
            self.x_panel.fetch(k0)
        self.panel.fetch(k0)

    def _store(self, x: ir.Var, w: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        if self.x_panel is not None:
            self.x_panel.store(x, stage, k0)
        self.panel.store(w, stage, k0)

    def _sums(self) -> list[list[int]]:
        down, across = self.squares
        return [[i, j, e] for i in range(down) for j in range(across) for e in range(4)]

    def _copy_x(self, x: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        """Start bringing the tile of x that begins at column k0 into `x[stage]`."""
        c, tile = self.c, self.tile
        chunks = tile.depth // tile.chunk
        for j in range(tile.rows * chunks // tile.threads):
            row = T.bind((self.thread + j * tile.threads) // chunks)
            column = T.bind(self.thread % chunks * tile.chunk)
            r = T.bind(self.r0 + row)
            value = c.x(tirx.min(r, c.rows - 1), k0 + column)
            to = warp.address(x, [stage, row, column])
            size = tirx.Select(r < c.rows, tirx.IntImm("int32", 16), tirx.IntImm("int32", 0))
            warp.copy_rest_zero(to, warp.address(value.source, list(value.indices)), size)
        warp.close_copies()

    def _multiply(self, acc: ir.Var, x: ir.Var, w: ir.Var, stage: ir.Expr) -> None:
        tile, lane = self.tile, self.lane
        down, across = self.squares
        first_row = T.bind(self.warp // tile.across * (down * 16))
        first_column = T.bind(self.warp % tile.across * (across * 8))
        square, line = T.bind(lane // 8), T.bind(lane % 8)
        low, high = T.bind(square % 2 * 8), T.bind(square // 2 * 8)
        unit = tile.unit
        for k in range(0, tile.depth, tile.step):
            b = T.alloc_buffer((across // 2, 4), "uint32", scope="local")
            for j in range(across // 2):
                n = first_column + 16 * j
                # squares 0 and 1 are the two halves of k of one mma, 2 and 3 those of the next
                at = (
                    [k + low + line, n + high]
                    if self.weight.kn
                    else [n + high + line, k + low * unit]
                )
                source = warp.address(w, [stage, *at])
                warp.load_squares(warp.address(b, [j, 0]), source, transposed=self.weight.kn)
            for i in range(down):
                a = T.alloc_buffer((4,), "uint32", scope="local")
                source = warp.address(x, [stage, first_row + 16 * i + low + line, k + high * unit])
                warp.load_squares(warp.address(a, [0]), source, transposed=False)
                left = [a[e] for e in range(4)]
                for j in range(across):
                    right = [b[j // 2, j % 2 * 2], b[j // 2, j % 2 * 2 + 1]]
                    warp.mma(tile.dtype, warp.address(acc, [i, j, 0]), left, right)

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

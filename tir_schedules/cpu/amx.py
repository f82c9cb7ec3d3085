"""Linear layers over many rows (prefill) with AMX: Intel's matrix unit, 16 times AVX-512's float32.

A tile register holds 16 rows of 64 bytes. `tdpbf16ps` multiplies an A tile (16 rows times 32
columns of x) with a B tile (16 pairs of k times 16 columns of the output) into a C tile (16 x 16
float32). The micro kernel keeps 2 x 2 C tiles and loads 2 + 2 tiles for every four products:

    tiles 0 1     sums of rows 0 ... 15,  columns 0 ... 15 and 16 ... 31
    tiles 2 3     sums of rows 16 ... 31
    tiles 4 5     x,  both blocks of rows
    tiles 6 7     W,  both blocks of columns

All loads are whole tiles: x, panels and sums are allotted so. Tiles belong to the thread, so each
task configures them and gives them back.

Linux lends the tiles only to processes that ask (arch_prctl), so the compiled code asks, in each
call, since asking twice does no harm; where the answer is no (an older kernel, another CPU) it
takes the kernel for AVX-512. Programs that load the lib need not know.

Products are exact, sums float32, denormals (below 2^-126) count as zero. Layers with float16 x and
4-bit weights come here too, and there x and the dequantized W are rounded to bfloat16: errors up to
3e-3 of the largest output, and on the example AWQ model KL 3.2e-5 nats per token (int16: 1.7e-6).
Simulated apart, x costs 1.7e-5 and W 1.1e-5 to 1.4e-5. W as exact integers q - z with the scale on
the sums would save the second; but the sums of every group of k would then take 16 loads, multiply-
adds and stores of vectors per tile, more time than the group's one (32) or four (128) products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .bf16 import LANES, RUN
from .bf16_gemm import Stretch, emit_bf16_gemm
from .bf16_panels import Panels

SQUARE = 16  # rows of a tile, and float32 columns
ROW_BYTES = 64
ARCH_PRCTL, ASK_PERMISSION, TILE_DATA = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XTILEDATA


def emit_if_permitted(c: Contraction, weight: Panels, otherwise: Callable[[], None]) -> None:
    """Emit the layer with tiles, and `otherwise` for processes that may not use them."""
    question = [tirx.IntImm("int64", v) for v in (ARCH_PRCTL, ASK_PERMISSION, TILE_DATA)]
    answer = T.bind(tirx.call_extern("int64", "syscall", *question))
    with T.If(answer == 0):
        with T.Then():
            emit_bf16_gemm(c, weight, TileKernel())
        with T.Else():
            otherwise()


class TileKernel:
    """tdpbf16ps: 2 x 2 tiles of sums."""

    row_tile: ClassVar[int] = 2 * SQUARE
    row_block: ClassVar[int] = 512
    depth: ClassVar[int] = 512
    strip: ClassVar[int] = 2 * SQUARE

    @contextmanager
    def task(self) -> Iterator[None]:
        """Eight whole tiles while the task runs."""
        _configure()
        yield
        _tile_word("tilerelease")

    def tile(self, s: Stretch, row: ir.Expr, part: ir.Expr) -> None:
        """One square of k after another."""
        width = 4 * int(s.sums.shape[1])
        places = {
            2 * i + j: [row + SQUARE * i, (part + j) * SQUARE] for i in range(2) for j in range(2)
        }
        for tile, place in places.items():
            _move("tileloadd64", tile, s.sums, place, width)
        first = [T.bind(s.x.line(s.r0 + row + SQUARE * i) + s.k0 // RUN * LANES) for i in range(2)]
        zero = s.c.const(0)
        with T.serial(0, s.c.const(s.squares)) as q:
            for i in range(2):
                _move("tileloadd64", 4 + i, s.x.pairs, [first[i] + q * LANES, zero], ROW_BYTES)
            for j in range(2):
                _move("tileloadd64", 6 + j, s.panel, [part + j, q * LANES, zero], ROW_BYTES)
            for tile in places:
                _tile_word("tdpbf16ps", tile, 4 + tile // 2, 6 + tile % 2)
        for tile, place in places.items():
            _move("tilestored64", tile, s.sums, place, width)


def _configure() -> None:
    """Palette 1, eight tiles of 16 rows of 64 bytes."""
    size, zero = 64, tirx.IntImm("int32", 0)
    config = T.alloc_buffer((size,), "uint8")
    simd.store(config, [zero], simd.zeros("uint8", size), size)
    palette, widths, heights = [0], range(16, 32, 2), range(48, 56)
    for places, value in ((palette, 1), (widths, ROW_BYTES), (heights, SQUARE)):
        for at in places:
            T.buffer_store(config, tirx.IntImm("uint8", value), [tirx.IntImm("int32", at)])
    _intrinsic("ldtilecfg", tirx.address_of(tirx.BufferLoad(config, [zero])))


def _move(word: str, tile: int, buffer: ir.Var, first: list[ir.Expr], stride: int) -> None:
    """Load or store 16 rows, `stride` bytes apart, from element `first` on."""
    address = tirx.address_of(tirx.BufferLoad(buffer, first))
    _intrinsic(word, tirx.IntImm("uint8", tile), address, tirx.IntImm("int64", stride))


def _tile_word(word: str, *tiles: int) -> None:
    _intrinsic(word, *(tirx.IntImm("uint8", tile) for tile in tiles))


def _intrinsic(word: str, *arguments: ir.Expr) -> None:
    T.evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{word}", *arguments))

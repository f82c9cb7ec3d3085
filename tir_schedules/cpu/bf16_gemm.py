"""Linear layer over many rows (prefill) in bfloat16: packed panels of pairs, float32 sums.

    round x to bfloat16, once for all tasks
    for every 128 columns and every block of rows, in parallel:
        for every stretch of k:
            panel[k / 2, columns] = pairs of W in bfloat16                              L2
            for every tile of rows, every strip of columns:
                acc[row, column] = sum[row, column] + products of pairs                 registers
                sum[row, column] = acc                                                  L2
        out = finish(sum)

Where x is bfloat16 its rounding is none, and W is what the model itself computes in bfloat16; what
is left is the order of the float32 sums (against float64: below 3e-6 of the largest output) and
the denormals (below 2^-126), which count as zero. Half the instructions of float32.

The loop nest is shared by two micro kernels: `VectorKernel` here (vdpbf16ps, 6 rows times 64
columns of accumulators) and the one of AMX tiles in `amx.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..rule import objections
from . import bf16, simd
from .bf16 import LANES, RUN
from .bf16_panels import COLUMNS, BfloatRows, Panels
from .vector_unit import VectorUnit


class Kernel(Protocol):
    """The innermost loops; sizes are in rows of x, columns of k and columns of the output."""

    row_tile: ClassVar[int]
    row_block: ClassVar[int]
    depth: ClassVar[int]
    strip: ClassVar[int]

    def task(self) -> AbstractContextManager[None]:
        """What a task needs around its work."""

    def tile(self, s: Stretch, row: ir.Expr, part: ir.Expr) -> None:
        """Add a stretch of k to `sums[row ..., 16 * part ...]`: row_tile times strip of them."""


@dataclass(frozen=True)
class Stretch:
    """One stretch of k of one task: squares `k0 / 32 ...` of x from row r0 on, and a panel."""

    c: Contraction
    x: BfloatRows
    panel: ir.Var
    sums: ir.Var
    r0: ir.Expr
    k0: ir.Expr
    squares: int


def against(c: Contraction, unit: VectorUnit) -> tuple[str, ...]:
    """The target must multiply bfloat16, and the model compute x and W in it."""
    types = {c.x_dtype, str(c.weight.ty)}
    return objections(
        (unit.bf16, "the target multiplies no bfloat16"),
        (types == {"bfloat16"}, f"{' and '.join(sorted(types))} would be rounded"),
    )


def emit_bf16_gemm(c: Contraction, weight: Panels, kernel: Kernel) -> None:
    """Emit the layer at the builder's current place."""
    columns = min(COLUMNS, -(-c.n // kernel.strip) * kernel.strip)
    blocks = -(-c.n // columns)
    with bf16.imported():
        x = BfloatRows.alloc(c, weight.pairing(LANES))
        x.fill(c)
        row_blocks = T.bind(simd.ceil_div(c.rows, kernel.row_block))
        with T.parallel(0, row_blocks * blocks) as task, kernel.task():
            # row blocks inside, so that every thread gets its part of a short last one; the last
            # columns may overlap their left neighbour's, which stores the same values
            last = c.const(max(0, c.n - columns))
            n0 = T.bind(tirx.min(tirx.floordiv(task, row_blocks) * columns, last))
            r0 = T.bind(tirx.floormod(task, row_blocks) * kernel.row_block)
            _task(c, weight, kernel, x, columns, n0, r0)


def _task(
    c: Contraction,
    weight: Panels,
    kernel: Kernel,
    x: BfloatRows,
    columns: int,
    n0: ir.Expr,
    r0: ir.Expr,
) -> None:
    count = T.bind(tirx.min(c.rows - r0, c.const(kernel.row_block)))
    depth = min(kernel.depth, x.squares * RUN)
    panel = T.alloc_buffer((columns // LANES, depth // 2, LANES), "int32")
    sums = T.alloc_buffer((kernel.row_block, columns), "float32")
    tiles, strips = simd.ceil_div(count, kernel.row_tile), columns // kernel.strip
    with T.serial(0, tiles * kernel.row_tile) as r, T.serial(0, c.const(columns // LANES)) as i:
        simd.store(sums, [r, i * LANES], simd.zeros("float32", LANES), LANES)

    def stretch(k0: ir.Expr, inside: int) -> None:
        weight.pack(panel, n0, columns, k0, inside)
        s = Stretch(c, x, panel, sums, r0, k0, -(-inside // RUN))
        with T.serial(0, tiles) as i, T.serial(0, c.const(strips)) as j:
            kernel.tile(s, T.bind(i * kernel.row_tile), T.bind(j * (kernel.strip // LANES)))

    whole, left = divmod(c.k, depth)
    if whole:
        with T.serial(0, c.const(whole)) as s:
            stretch(s * depth, depth)
    if left:
        stretch(c.const(whole * depth), left)
    _store(c, sums, count, columns, n0, r0)


def _store(
    c: Contraction, sums: ir.Var, count: ir.Expr, columns: int, n0: ir.Expr, r0: ir.Expr
) -> None:
    """Finish the sums and store those inside the output."""

    def put(r: ir.Expr, j: ir.Expr) -> None:
        c.put(r0 + r, n0 + j, tirx.BufferLoad(sums, [r, j]))

    width = min(columns, c.n)
    with T.serial(0, count) as r:
        if width >= LANES:
            with (
                T.serial(0, c.const(width // LANES)) as i,
                T.vectorized(0, c.const(LANES)) as lane,
            ):
                put(r, i * LANES + lane)
        for j in range(width // LANES * LANES, width):
            put(r, c.const(j))


class VectorKernel:
    """vdpbf16ps: 6 rows times 4 vectors of accumulators, 24 of the 32 registers."""

    row_tile: ClassVar[int] = 6
    row_block: ClassVar[int] = 528
    depth: ClassVar[int] = 512
    strip: ClassVar[int] = 4 * LANES

    def task(self) -> AbstractContextManager[None]:
        """Nothing to set up."""
        return nullcontext()

    def tile(self, s: Stretch, row: ir.Expr, part: ir.Expr) -> None:
        """One pair of k after another, a pair of x in all lanes."""
        vectors = self.strip // LANES
        acc = simd.Registers(self.row_tile, vectors, LANES)
        places = [(r, v) for r in range(self.row_tile) for v in range(vectors)]
        for r, v in places:
            acc.set(r, v, simd.load(s.sums, [row + r, (part + v) * LANES], LANES))
        rows = [tirx.min(s.r0 + row + r, s.c.rows - 1) for r in range(self.row_tile)]
        lines = [T.bind(s.x.line(r) + s.k0 // RUN * LANES) for r in rows]
        with T.serial(0, s.c.const(s.squares)) as q, T.serial(0, s.c.const(LANES)) as p:
            weights = [
                T.bind(simd.load(s.panel, [part + v, q * LANES + p, s.c.const(0)], LANES))
                for v in range(vectors)
            ]
            for r, line in enumerate(lines):
                pair = tirx.BufferLoad(s.x.pairs, [line + q * LANES, p])
                x = T.bind(simd.splat(pair, LANES))
                for v in range(vectors):
                    acc.set(r, v, bf16.dot(acc.get(r, v), weights[v], x))
        for r, v in places:
            simd.store(s.sums, [row + r, (part + v) * LANES], acc.get(r, v), LANES)

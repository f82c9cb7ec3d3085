"""Weights on their way into shared memory, for the tiles of `gemm.py`.

`AwqPanel`: words of `[K, N / 8]` hold eight channels of one k, so a word becomes 16 bytes of a
tile `[k, n]`: four pairs `(q - z) * s`, the product rounded once to the half type, which is what
the function itself computes. Zeros and scales are read once a tile.

`EvaluatedPanel`: any other expression, eight neighbours along the axis that is contiguous in
memory, as a tile `[n, k]` or `[k, n]`. Loads that run along that axis (float weights, float8
codes) are fetched as one vector a step ahead; the rest of the expression is computed on the way
into shared memory, where the compiler shares the loads of words and scales among the eight.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm import DataType, ir, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..awq_weight import CODES, AwqLayout
from ..contraction import Contraction
from ..expression import rebuild, walk
from . import warp
from .awq_pairs import pair
from .gemm import CHUNK, DEPTH, Tile

PAIRS = CODES // 2


@dataclass(frozen=True)
class AwqWords:
    """AWQ words, zeros and scales of one half type."""

    layout: AwqLayout
    kn: bool = True

    @staticmethod
    def match(c: Contraction) -> AwqWords | None:
        """AWQ whose groups are whole tiles."""
        layout = AwqLayout.match(c)
        if layout is None or layout.group % DEPTH or str(layout.scales.dtype) != c.x_dtype:
            return None
        return AwqWords(layout)

    def panel(self, c: Contraction, tile: Tile, n0: ir.Expr, thread: ir.Expr) -> AwqPanel:
        return AwqPanel(c, self.layout, tile, n0, thread)


@dataclass
class AwqPanel:
    """One thread's words: always the same column of them, several rows."""

    c: Contraction
    layout: AwqLayout
    tile: Tile
    n0: ir.Expr
    thread: ir.Expr
    words: ir.Var = field(init=False)
    zero: ir.Var = field(init=False)
    scales: ir.Var = field(init=False)

    def __post_init__(self) -> None:
        across = self.tile.columns // CODES
        self.place = T.bind(self.thread % across)
        last = self.c.const(self.c.n // CODES - 1)
        self.column = T.bind(tirx.min(self.n0 // CODES + self.place, last))
        step = self.tile.threads // across
        self.rows = [T.bind(self.thread // across + r) for r in range(0, DEPTH, step)]
        self.words = T.alloc_buffer((len(self.rows),), "uint32", scope="local")
        self.zero = T.alloc_buffer((1,), "uint32", scope="local")
        self.scales = T.alloc_buffer((PAIRS,), "uint32", scope="local")

    def shape(self) -> tuple[int, int]:
        return DEPTH, self.tile.columns

    def fetch(self, k0: ir.Expr) -> None:
        layout = self.layout
        for i, row in enumerate(self.rows):
            T.buffer_store(self.words, tirx.BufferLoad(layout.words, [k0 + row, self.column]), [i])
        group = T.bind(k0 // layout.group)
        T.buffer_store(self.zero, tirx.BufferLoad(layout.zeros, [group, self.column]), [0])
        source = warp.address(layout.scales, [group, self.column * CODES])
        warp.copy(16, warp.address(self.scales, [0]), source)

    def store(self, shared: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        dtype, shifts = self.c.x_dtype, self.layout.shifts
        zeros = [
            T.bind(pair(self.zero[0], shifts[2 * p], shifts[2 * p + 1], dtype))
            for p in range(PAIRS)
        ]
        for i, row in enumerate(self.rows):
            values = T.alloc_buffer((PAIRS,), "uint32", scope="local")
            for p in range(PAIRS):
                codes = pair(self.words[i], shifts[2 * p], shifts[2 * p + 1], dtype)
                exact = warp.subtract_pair(dtype, codes, zeros[p])
                T.buffer_store(values, warp.multiply_pair(dtype, exact, self.scales[p]), [p])
            to = warp.address(shared, [stage, row, self.place * CODES])
            warp.copy(16, to, warp.address(values, [0]))


@dataclass(frozen=True)
class Evaluated:
    """`W[n, k]` as an expression."""

    kn: bool

    @staticmethod
    def match(c: Contraction) -> Evaluated | None:
        """Any weight in memory whose contiguous axis is whole chunks."""
        loads = [e for e in walk(c.weight) if isinstance(e, TensorLoad)]
        if not loads:
            return None
        largest = max(loads, key=_size)
        kn = not any(v.same_as(c.k_var) for v in walk(list(largest.indices)[-1]))
        return None if kn and c.n % CHUNK else Evaluated(kn)

    def panel(self, c: Contraction, tile: Tile, n0: ir.Expr, thread: ir.Expr) -> EvaluatedPanel:
        return EvaluatedPanel(c, self.kn, tile, n0, thread)


@dataclass
class EvaluatedPanel:
    """One thread's chunks of eight values."""

    c: Contraction
    kn: bool
    tile: Tile
    n0: ir.Expr
    thread: ir.Expr

    def __post_init__(self) -> None:
        outer, inner = self.shape()
        chunks, threads = inner // CHUNK, self.tile.threads
        self.column = T.bind(self.thread % chunks * CHUNK)
        step = threads // chunks
        self.rows = [T.bind(self.thread // chunks + r) for r in range(0, outer, step)]
        self.ahead = [
            (load, T.alloc_buffer((len(self.rows), CHUNK), str(load.ty), scope="local"))
            for load in self._vectors()
        ]

    def shape(self) -> tuple[int, int]:
        return (DEPTH, self.tile.columns) if self.kn else (self.tile.columns, DEPTH)

    def fetch(self, k0: ir.Expr) -> None:
        for i, row in enumerate(self.rows):
            n, k = self._point(row, k0)
            for load, values in self.ahead:
                at = [rebuild(e, {self.c.n_var: n, self.c.k_var: k}) for e in load.indices]
                size = DataType(str(load.ty)).bits // 8 * CHUNK
                warp.copy(size, warp.address(values, [i, 0]), warp.address(load.source, at))

    def store(self, shared: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        c = self.c
        for i, row in enumerate(self.rows):
            n, k = self._point(row, k0)
            values = T.alloc_buffer((CHUNK,), c.x_dtype, scope="local")
            for e in range(CHUNK):
                point = {c.n_var: n + e, c.k_var: k} if self.kn else {c.n_var: n, c.k_var: k + e}

                def near(load: TensorLoad, _: list, i: int = i, e: int = e) -> ir.Expr | None:
                    return next((v[i, e] for a, v in self.ahead if _same(a, load)), None)

                value = rebuild(c.weight, point, near)
                T.buffer_store(values, value.astype(c.x_dtype), [e])
            to = warp.address(shared, [stage, row, self.column])
            warp.copy(16, to, warp.address(values, [0]))

    def _point(self, row: ir.Expr, k0: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
        """n and k of a chunk; past the last channel it repeats the last chunk or row."""
        c = self.c
        if self.kn:
            return tirx.min(self.n0 + self.column, c.const(c.n - CHUNK)), k0 + row
        return tirx.min(self.n0 + row, c.const(c.n - 1)), k0 + self.column

    def _vectors(self) -> list[TensorLoad]:
        """Loads of 1 or 2 byte elements that run along the contiguous axis."""
        c = self.c
        along, other = (c.n_var, c.k_var) if self.kn else (c.k_var, c.n_var)
        found: list[TensorLoad] = []
        for e in walk(c.weight):
            if not isinstance(e, TensorLoad) or DataType(str(e.ty)).bits not in (8, 16):
                continue
            *lead, last = e.indices
            whole = getattr(list(e.source.shape)[-1], "value", 1) % CHUNK == 0
            plain = last.same_as(along) and all(i.same_as(other) for i in lead)
            if whole and plain and not any(_same(e, f) for f in found):
                found.append(e)
        return found


def _same(a: TensorLoad, b: TensorLoad) -> bool:
    return bool(a.source.same_as(b.source)) and all(
        i.same_as(j) for i, j in zip(a.indices, b.indices, strict=True)
    )


def _size(e: TensorLoad) -> int:
    """Elements of a loaded buffer."""
    total = 1
    for extent in e.source.shape:
        total *= getattr(extent, "value", 1)
    return total

"""Sides of a product on their way into shared memory, for the tiles of `gemm.py`.

`AwqPanel`: words of `[K, N / 8]` hold eight channels of one k, so a word becomes 16 bytes of a
tile `[k, n]`: four pairs `(q - z) * s`, the product rounded once to the half type, which is what
the function itself computes. Zeros and scales are read once a tile.

`EvaluatedPanel`: any other expression, 16 bytes of neighbours along the axis that is contiguous in
memory, as a tile `[n, k]` or `[k, n]`. Loads that run along that axis (float weights, float8
codes) are fetched as one vector, and those that stay (words of 4-bit codes, scales of groups) once,
a step ahead; the rest of the expression is computed on the way into shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm import DataType, ir, sym, tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

from ..awq_weight import CODES, AwqLayout
from ..contraction import Contraction
from ..expression import rebuild, walk
from . import warp
from .awq_pairs import pair
from .tile import Tile

PAIRS = CODES // 2


@dataclass(frozen=True)
class AwqWords:
    """AWQ words, zeros and scales of the tile's half type."""

    layout: AwqLayout
    kn: bool = True

    @staticmethod
    def match(c: Contraction, tile: Tile) -> AwqWords | None:
        """AWQ whose groups are whole tiles."""
        layout = AwqLayout.match(c)
        if layout is None or layout.group % tile.depth or str(layout.scales.dtype) != tile.dtype:
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
        self.rows = [T.bind(self.thread // across + r) for r in range(0, self.tile.depth, step)]
        self.words = T.alloc_buffer((len(self.rows),), "uint32", scope="local")
        self.zero = T.alloc_buffer((1,), "uint32", scope="local")
        self.scales = T.alloc_buffer((PAIRS,), "uint32", scope="local")

    def shape(self) -> tuple[int, int]:
        return self.tile.depth, self.tile.columns

    def fetch(self, k0: ir.Expr) -> None:
        layout = self.layout
        for i, row in enumerate(self.rows):
            T.buffer_store(self.words, tirx.BufferLoad(layout.words, [k0 + row, self.column]), [i])
        group = T.bind(k0 // layout.group)
        T.buffer_store(self.zero, tirx.BufferLoad(layout.zeros, [group, self.column]), [0])
        source = warp.address(layout.scales, [group, self.column * CODES])
        warp.copy(16, warp.address(self.scales, [0]), source)

    def store(self, shared: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        dtype, shifts = self.tile.dtype, self.layout.shifts
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
    def match(c: Contraction, tile: Tile) -> Evaluated | None:
        """Any weight in memory whose contiguous axis is whole chunks."""
        loads = [e for e in walk(c.weight) if isinstance(e, TensorLoad)]
        if not loads:
            return None
        largest = max(loads, key=_size)
        kn = not any(v.same_as(c.k_var) for v in walk(list(largest.indices)[-1]))
        whole = tile.unit == 1 and c.n % tile.chunk == 0  # 8-bit values cannot be transposed
        return None if kn and not whole else Evaluated(kn)

    def panel(self, c: Contraction, tile: Tile, n0: ir.Expr, thread: ir.Expr) -> EvaluatedPanel:
        last = c.const(c.n - 1)
        return EvaluatedPanel(
            tile, c.weight, c.n_var, c.k_var, self.kn, tile.columns, n0, last, thread
        )


@dataclass
class EvaluatedPanel:
    """One thread's chunks of an expression in `row` (n, or r of x) and `k`, from row `first` on."""

    tile: Tile
    expression: ir.Expr
    row: ir.Var
    k: ir.Var
    kn: bool
    count: int
    first: ir.Expr
    last: ir.Expr
    thread: ir.Expr

    def __post_init__(self) -> None:
        (outer, inner), threads = self.shape(), self.tile.threads
        chunks = inner // self.tile.chunk
        self.column = T.bind(self.thread % chunks * self.tile.chunk)
        places = range(0, outer, threads // chunks)
        self.lines = [T.bind(self.thread // chunks + r) for r in places]
        count = len(self.lines)
        self.ahead = [
            (load, width, warp.by_address((count, width), _raw(str(load.ty)), "local"))
            for load, width in self._loads()
        ]

    def shape(self) -> tuple[int, int]:
        depth = self.tile.depth
        return (depth, self.count) if self.kn else (self.count, depth)

    def fetch(self, k0: ir.Expr) -> None:
        for i, line in enumerate(self.lines):
            point = self._point(line, k0, 0)
            for load, width, values in self.ahead:
                at = [rebuild(e, point) for e in load.indices]
                if width == 1:
                    T.buffer_store(values, tirx.BufferLoad(load.source, at), [i, 0])
                else:
                    size = _bits(load) // 8 * width
                    warp.copy(size, warp.address(values, [i, 0]), warp.address(load.source, at))

    def store(self, shared: ir.Var, stage: ir.Expr, k0: ir.Expr) -> None:
        dtype, chunk = self.tile.dtype, self.tile.chunk
        for i, line in enumerate(self.lines):
            to = warp.address(shared, [stage, line, self.column])
            if self._as_it_is():
                warp.copy(16, to, warp.address(self.ahead[0][2], [i, 0]))
                continue
            values = T.alloc_buffer((chunk,), dtype, scope="local")
            for e in range(chunk):

                def fetched(load: TensorLoad, _: list, i: int = i, e: int = e) -> ir.Expr | None:
                    values = (v[i, e % w] for a, w, v in self.ahead if _same(a, load))
                    value = next(values, None)
                    coded = value is not None and value.ty != load.ty
                    return warp.half_of(str(load.ty), value) if coded else value

                value = rebuild(self.expression, self._point(line, k0, e), fetched)
                T.buffer_store(values, value.astype(dtype), [e])
            warp.copy(16, to, warp.address(values, [0]))

    def _as_it_is(self) -> bool:
        """True where the expression is one vector load of the tile's type."""
        e = self.expression
        whole = isinstance(e, TensorLoad) and str(e.ty) == self.tile.dtype
        return whole and [width for _, width, _ in self.ahead] == [self.tile.chunk]

    def _point(self, line: ir.Expr, k0: ir.Expr, e: int) -> dict[ir.Var, ir.Expr]:
        """Row and k of value e of a chunk; past the end the last row, or chunk, comes again."""
        if self.kn:
            begin = tirx.min(self.first + self.column, self.last - (self.tile.chunk - 1))
            return {self.row: begin + e, self.k: k0 + line}
        return {self.row: tirx.min(self.first + line, self.last), self.k: k0 + self.column + e}

    def _loads(self) -> list[tuple[TensorLoad, int]]:
        """Loads to fetch ahead and how many values each brings for a chunk."""
        found: list[tuple[TensorLoad, int]] = []
        for e in walk(self.expression):
            if isinstance(e, TensorLoad) and not any(_same(e, f) for f, _ in found):
                width = self._width(e)
                found += [(e, width)] if width else []
        return found

    def _width(self, load: TensorLoad) -> int:
        """A chunk for a load along the contiguous axis, 1 for one that stays, 0 for others."""
        along, other = (self.row, self.k) if self.kn else (self.k, self.row)
        chunk = self.tile.chunk
        if _bits(load) * chunk in (64, 128) and runs_along(load, along, chunk):
            return chunk
        analyzer, q = sym.Analyzer(), tirx.Var("q", along.ty)
        analyzer.bind(q, ir.Range(0, 1 << 20))
        ends = [
            [rebuild(i, {along: q * chunk + e, other: other}) for i in load.indices]
            for e in (0, chunk - 1)
        ]
        stays = all(analyzer.can_prove_equal(a, b) for a, b in zip(*ends, strict=True))
        return 1 if stays else 0


def runs_along(e: ir.Expr, axis: ir.Var, count: int) -> bool:
    """True for a load whose neighbours along `axis` are aligned vectors of `count` in memory."""
    if not isinstance(e, TensorLoad):
        return False
    *lead, last = list(e.indices)
    line = getattr(list(e.source.shape)[-1], "value", 1)
    inside = any(v.same_as(axis) for i in lead for v in walk(i))
    return bool(last.same_as(axis)) and not inside and line % count == 0


def _raw(dtype: str) -> str:
    """The type to keep in registers: TVM makes floats of float8 ones on machines before sm_89."""
    return "uint8" if dtype.startswith("float8") else dtype


def _bits(load: TensorLoad) -> int:
    return int(DataType(str(load.ty)).bits)


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

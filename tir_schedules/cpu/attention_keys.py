"""The two products of a decode step over one range of cached keys, sums in registers.

    S[g, j] = sum_d Q[g, d] K[j, d]             out[g, d] = sum_j P[g, j] V[j, d]

for the `group` query rows g that share a KV head. Lanes run along d. A sum over d ends in a fold of
the lanes, which costs as much as the products of a whole row: several keys are taken at once, so
that one tree of shuffles folds all their sums. Scores, results, and the places of the keys in the
pages (`page * page_size + slot`) are buffers `[KV head, range, ...]`; `where` is a task's own part.

A range is done with one product before it begins the other: in a loop over blocks of keys with both
in it, LLVM keeps the constants of the exponential in registers and spills these sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from . import simd
from .attention_tile import Heads
from .vector_unit import VectorUnit


@dataclass(frozen=True)
class Keys:
    """The query rows, `heads` of them and as many `keys` or `chunks` of d as fill a tile."""

    group: int
    d_qk: int
    d_v: int
    lanes: int
    heads: int
    keys: int
    chunks: int

    @staticmethod
    def of(shape: Heads, unit: VectorUnit) -> Keys:
        """Tiles of at most half of the registers, two keys wide at least."""
        lanes, most = gcd(unit.lanes, shape.d_qk, shape.d_v), unit.registers // 2
        heads = max(n for n in range(1, min(8, most // 2) + 1) if shape.group % n == 0)
        keys = max(n for n in (1, 2, 4, 8) if n * heads <= most and n <= lanes)
        vectors = shape.d_v // lanes
        chunks = max(n for n in range(1, 9) if vectors % n == 0 and n * heads <= most)
        return Keys(shape.group, shape.d_qk, shape.d_v, lanes, heads, keys, chunks)

    def dot(
        self, S: ir.Var, Q: ir.Var, pages: ir.Var, places: ir.Var, where: Sequence[ir.Expr],
        count: ir.Expr,
    ) -> None:  # fmt: skip
        """Scores of `count` keys; those that fill the last tile are wrong."""
        lanes = self.lanes
        with T.serial(0, simd.ceil_div(count, self.keys)) as tile:
            j0 = T.bind(tile * self.keys)
            inside = [T.bind(tirx.min(j0 + j, count - 1)) for j in range(self.keys)]
            rows = [_row(pages, 0, places, where, j) for j in inside]
            with T.serial(0, _int(self.group // self.heads)) as part:
                acc = simd.Registers(self.heads, self.keys, lanes)
                acc.clear()
                first = part * self.heads
                with T.serial(0, _int(self.d_qk // lanes)) as c:
                    at = T.bind(c * lanes)
                    q = [T.bind(simd.load(Q, [first + g, at], lanes)) for g in range(self.heads)]
                    for j, row in enumerate(rows):
                        k = T.bind(simd.widen(simd.load(pages, [*row, at], lanes), lanes))
                        for g in range(self.heads):
                            acc.set(g, j, simd.fma(q[g], k, acc.get(g, j), lanes))
                for g in range(self.heads):
                    sums = [acc.get(g, j) for j in range(self.keys)]
                    simd.store(S, [*where, first + g, j0], simd.lane_sums(sums, lanes), self.keys)

    def weigh(
        self, out: ir.Var, P: ir.Var, pages: ir.Var, places: ir.Var, where: Sequence[ir.Expr],
        count: ir.Expr,
    ) -> None:  # fmt: skip
        """Store the weighted sums of `count` values in `out[*where, g, d]`."""
        lanes, wide = self.lanes, self.lanes * self.chunks
        with (
            T.serial(0, _int(self.group // self.heads)) as part,
            T.serial(0, _int(self.d_v // wide)) as stretch,
        ):
            acc = simd.Registers(self.heads, self.chunks, lanes)
            tile = [
                (g, c, [part * self.heads + g, stretch * wide + c * lanes])
                for g in range(self.heads)
                for c in range(self.chunks)
            ]
            acc.clear()
            with T.serial(0, count) as j:
                row = _row(pages, 1, places, where, j)
                weights = [
                    T.bind(
                        simd.splat(tirx.BufferLoad(P, [*where, part * self.heads + g, j]), lanes)
                    )
                    for g in range(self.heads)
                ]
                for c in range(self.chunks):
                    at = stretch * wide + c * lanes
                    v = T.bind(simd.widen(simd.load(pages, [*row, at], lanes), lanes))
                    for g in range(self.heads):
                        acc.set(g, c, simd.fma(weights[g], v, acc.get(g, c), lanes))
            for g, c, at in tile:
                simd.store(out, [*where, *at], acc.get(g, c), lanes)


def _row(
    pages: ir.Var, half: int, places: ir.Var, where: Sequence[ir.Expr], j: ir.Expr
) -> list[ir.Expr]:
    """Indices of key j's row (half 0) or value row (half 1) in the pages."""
    place, size = T.bind(tirx.BufferLoad(places, [*where, j])), pages.shape[3]
    page = T.bind(tirx.floordiv(place, size).astype("int64"))
    return [page, _int(half), where[0], T.bind(tirx.floormod(place, size))]


def _int(value: int) -> ir.Expr:
    return tirx.IntImm("int32", value)

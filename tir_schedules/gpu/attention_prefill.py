"""Prefill attention on tensor cores: ragged, paged, and both for token trees.

    S = Q K^T        rows are (position, head of the group): all heads of a KV head share its keys
    m', fade = max(m, max S), 2**(m - m')      online softmax in registers, scores in base 2
    O = O fade + 2**(S - m') V                 lse = m + log2 den

A block has `ROWS` rows, 16 a warp, whose Q, S and O stay in registers (Q of wide heads is read
again from the first cache: O takes the registers). Keys and values pass through shared memory in
tiles of `keys`, each with a buffer of its own, so that one arrives while the other is used:

    start V(i); wait for K(i); S; start K(i + 1); softmax; wait for V(i); O

Rows of shared memory are 16 bytes longer than their content, an odd number of 16: the eight rows of
`ldmatrix` lie in different banks. S leaves `mma` in the order in which P enters it. Tiles of late
rows, which see the most keys, come first.

Four functions differ in where a key lies (`Source`) and in which keys a row sees (`Sight`); a tile
that all rows of the block see whole is not masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import ir, tirx
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from . import warp
from .attention_function import (
    MASKED,
    NO_SCORE,
    Arguments,
    Heads,
    base2,
    f32,
    function,
    host,
    i32,
    inverse,
    joint,
    of_all,
    owner,
    ratio,
    rest,
    rising,
    variable,
    when,
)

WARPS = 4
ROWS = 16 * WARPS
CHUNK = 8  # half values in 16 bytes
KEPT = 128  # the widest head whose Q stays in registers

Row = Callable[[ir.Expr], tuple[ir.Var, list[Any]]]  # key -> a buffer and where its row begins


@dataclass(frozen=True)
class Source:
    """Where the keys and values of one sequence lie."""

    keys: Row
    values: Row
    length: ir.Expr


@dataclass(frozen=True)
class Sight:
    """Which keys a row sees: `low <= key < high`, and what `also` says.

    `low` and `high` of a position rise with it; `plain(first, last)` is true for tiles of keys that
    `also` has nothing against.
    """

    low: Callable[[ir.Expr], ir.Expr]
    high: Callable[[ir.Expr], ir.Expr]
    also: Callable[[ir.Expr, ir.Expr], ir.Expr] | None = None
    plain: Callable[[ir.Expr, ir.Expr], ir.Expr] | None = None


@dataclass(frozen=True)
class _Queries:
    """The parameters that all four have."""

    q: ir.Var
    indptr: ir.Var
    position: ir.Var
    output: ir.Var
    lse: ir.Var
    scale: ir.Expr
    batch: ir.Expr
    total: ir.Expr


# Of the sequence b whose queries are `first ... first + count - 1`
Look = Callable[[ir.Expr, ir.Expr, ir.Expr], tuple[Source, Sight]]


def prefill_ragged(heads: Heads) -> PrimFunc:
    """New queries `[n, num_q, d]` over the new keys `[n', num_kv, d]` of the same sequences."""
    return function("batch_prefill_ragged_kv", partial(_ragged, heads, False))


def prefill_paged(heads: Heads, sliding: bool = False) -> PrimFunc:
    """New queries over cached keys; `sliding`: those of a window of slots and of a sink."""
    return function("batch_prefill_paged_kv", partial(_paged, heads, sliding))


def tree_ragged(heads: Heads) -> PrimFunc:
    """New queries over the new keys of the same trees (`cpu/attention_tree.py`)."""
    return function("batch_tree_attn", partial(_ragged, heads, True))


def tree_paged(heads: Heads) -> PrimFunc:
    """New queries over cached keys, the last of which are the trees."""
    return function("tree_attn_paged_kv", partial(_tree_paged, heads))


def _ragged(heads: Heads, tree: bool, a: Arguments) -> None:
    n_q, n_kv = a.size("n_q"), a.size("n_kv")
    # a size must be some array's, and of trees no array has one entry a sequence
    size = a.size("bounds" if tree else "batch")
    batch, bounds = (size - 1, size) if tree else (size, size + 1)
    q = a.tensor("q", (n_q, heads.num_q, heads.d), heads.dtype)
    q_indptr = a.view("q_indptr", (bounds,))
    k = a.tensor("k", (n_kv, heads.num_kv, heads.d), heads.dtype)
    v = a.tensor("v", (n_kv, heads.num_kv, heads.d), heads.dtype)
    kv_indptr = a.view("kv_indptr", (bounds,))
    q_pos = a.view("q_rope_position", (n_q,))
    k_pos, trees = q_pos, None
    if tree:
        trees = _Trees(a.view("mn_indptr", (bounds,)), a.view("mask", (a.size("nodes"), 2)))
    else:
        k_pos = a.view("k_rope_pos_offset", (batch,))
    output = a.tensor("output", (n_q, heads.num_q, heads.d), heads.dtype)
    lse = a.tensor("lse", (n_q, heads.num_q), "float32")
    causal = None if tree else a.number("causal", "int32")
    scale = _numbers(a)

    def look(b: ir.Expr, first: ir.Expr, count: ir.Expr) -> tuple[Source, Sight]:
        begin = T.bind(kv_indptr[b])
        length = T.bind(kv_indptr[b + 1] - begin)
        source = Source(lambda key: (k, [begin + key]), lambda key: (v, [begin + key]), length)
        if trees is not None:
            return source, trees.sight(b, count, length, lambda _: i32(0))
        offset = T.bind(k_pos[b])
        return source, Sight(
            lambda at: heads.first_seen(scale, q_pos[first + at], offset),
            lambda at: _last_seen(causal, at, count, length),
        )

    _Kernel(heads, _Queries(q, q_indptr, q_pos, output, lse, scale, batch, n_q), look).emit()


def _paged(heads: Heads, sliding: bool, a: Arguments) -> None:
    table = _Table.of(heads, a, sliding)
    batch, n_q = table.batch, table.n_q
    output = a.tensor("output", (n_q, heads.num_q, heads.d), heads.dtype)
    lse = a.tensor("lse", (n_q, heads.num_q), "float32")
    causal = a.number("causal", "int32")
    scale = _numbers(a)
    info, q_pos = table.info, table.q_pos

    def look(b: ir.Expr, first: ir.Expr, count: ir.Expr) -> tuple[Source, Sight]:
        source = table.source(b, sliding)
        offset = T.bind(table.k_pos[b])

        def low(at: ir.Expr) -> ir.Expr:
            return heads.first_seen(scale, q_pos[first + at], offset)

        def high(at: ir.Expr) -> ir.Expr:
            return _last_seen(causal, at, count, source.length)

        if not sliding:
            return source, Sight(low, high)
        begin, sink = T.bind(info[1, b]), T.bind(info[2, b])
        return source, Sight(
            low,
            high,
            lambda _, key: tirx.any(key < sink, key >= begin),
            lambda one, last: tirx.any(last < sink, one >= begin),
        )

    queries = _Queries(table.q, table.q_indptr, q_pos, output, lse, scale, batch, n_q)
    _Kernel(heads, queries, look).emit()


def _tree_paged(heads: Heads, a: Arguments) -> None:
    table = _Table.of(heads, a, sliding=False)
    batch, n_q, q_pos = table.batch, table.n_q, table.q_pos
    output = a.tensor("output", (n_q, heads.num_q, heads.d), heads.dtype)
    lse = a.tensor("lse", (n_q, heads.num_q), "float32")
    scale = _numbers(a)
    order = a.view("tree_order_indptr", (batch + 1,)), a.view("tree_order", (a.size("nodes"), 2))
    trees = _Trees(*order)

    def look(b: ir.Expr, first: ir.Expr, count: ir.Expr) -> tuple[Source, Sight]:
        source, offset = table.source(b, False), T.bind(table.k_pos[b])

        def low(at: ir.Expr) -> ir.Expr:
            return heads.first_seen(scale, q_pos[first + at], offset)

        return source, trees.sight(b, count, source.length, low)

    queries = _Queries(table.q, table.q_indptr, q_pos, output, lse, scale, batch, n_q)
    _Kernel(heads, queries, look).emit()


def _numbers(a: Arguments) -> ir.Expr:
    for name, dtype in (("rotary_mode", "int32"), ("rope_scale", "float32")):
        a.number(name, dtype)
    a.number("rope_theta", "float32")
    return a.number("sm_scale", "float32")


def _last_seen(causal: ir.Expr, at: ir.Expr, count: ir.Expr, length: ir.Expr) -> ir.Expr:
    """One past the last key that query `at` of `count` sees."""
    return tirx.Select(causal > 0, tirx.min(length - count + at + 1, length), length)


@dataclass(frozen=True)
class _Table:
    """The parameters of a function over cached keys."""

    heads: Heads
    batch: ir.Var
    n_q: ir.Var
    q: ir.Var
    q_indptr: ir.Var
    pages: ir.Var
    page_indptr: ir.Var
    page_values: ir.Var
    info: ir.Var
    k_pos: ir.Var
    q_pos: ir.Var

    @classmethod
    def of(cls, heads: Heads, a: Arguments, sliding: bool) -> _Table:
        batch, n_q = a.size("batch"), a.size("n_q")
        return cls(
            heads,
            batch,
            n_q,
            a.tensor("q", (n_q, heads.num_q, heads.d), heads.dtype),
            a.view("q_indptr", (batch + 1,)),
            a.tensor("pages", heads.pages(a.size("num_pages", "int64")), heads.dtype, view=True),
            a.view("page_indptr", (batch + 1,)),
            a.view("page_values", (a.size("nnz_pages"),)),
            a.view("length_info", (3, batch) if sliding else (batch,)),
            a.view("k_rope_pos_offset", (batch,)),
            a.view("q_rope_position", (n_q,)),
        )

    def source(self, b: ir.Expr, sliding: bool) -> Source:
        size, begin = self.heads.page, T.bind(self.page_indptr[b])
        count = T.bind(self.page_indptr[b + 1] - begin)
        used = self.info[0, b] if sliding else self.info[b]

        def row(half: int, key: ir.Expr) -> tuple[ir.Var, list[Any]]:
            number = self.page_values[begin + ratio(key, size)]
            return self.pages, [number.astype("int64"), half, rest(key, size)]

        length = T.bind(tirx.Select(count > 0, (count - 1) * size + used, i32(0)))
        return Source(partial(row, 0), partial(row, 1), length)


@dataclass(frozen=True)
class _Trees:
    """The last keys of a sequence are nodes with `(enter, leave)` of a depth-first walk."""

    indptr: ir.Var
    order: ir.Var

    def sight(
        self,
        b: ir.Expr,
        count: ir.Expr,
        length: ir.Expr,
        low: Callable[[ir.Expr], ir.Expr],
    ) -> Sight:
        begin = T.bind(self.indptr[b])
        nodes = T.bind(self.indptr[b + 1] - begin)

        def also(at: ir.Expr, key: ir.Expr) -> ir.Expr:
            me, other = begin + nodes - count + at, begin + key - (length - nodes)
            enter, order = self.order[me, 0], self.order
            sees = tirx.all(order[other, 0] <= enter, enter < order[other, 1])
            inside = tirx.all(key >= length - nodes, key < length)
            return tirx.if_then_else(inside, sees, tirx.IntImm("bool", 1))

        return Sight(low, lambda _: length, also, lambda _, last: last < length - nodes)


@dataclass(frozen=True)
class _Kernel:
    """One launch: a block for each tile of rows and KV head."""

    heads: Heads
    queries: _Queries
    look: Look

    @property
    def keys(self) -> int:
        """Of a tile; both buffers stay below 48 KiB."""
        return 64 if self.heads.d <= 128 else 32

    def first(self, b: ir.Expr) -> ir.Expr:
        """The first tile of rows of sequence b, of which a few may be empty."""
        return b + ratio(self.queries.indptr[b] * self.heads.group, ROWS)

    def emit(self) -> None:
        heads, queries = self.heads, self.queries
        slots = host("slots", queries.batch + ratio(queries.total * heads.group, ROWS))
        blocks = [slots, i32(heads.num_kv)]
        with warp.kernel("int32", blocks, WARPS) as (block, head, w, lane):
            slot = T.bind(slots - 1 - block)
            b = owner(slot, lane, queries.batch, self.first)
            with when(b >= 0):
                first = T.bind(queries.indptr[b])
                count = T.bind(queries.indptr[b + 1] - first)
                tile = T.bind(slot - self.first(b))
                with when(tile * ROWS < count * heads.group):
                    source, sight = self.look(b, first, count)
                    _Block(self, source, sight, first, count, tile, head, w, lane).run()


@dataclass(frozen=True)
class _State:
    """Of a lane: O of its two rows, their maxima and sums."""

    out: ir.Var
    m: ir.Var
    den: ir.Var


@dataclass(frozen=True)
class _Block:
    kernel: _Kernel
    source: Source
    sight: Sight
    first: ir.Expr  # query of the sequence
    count: ir.Expr
    tile: ir.Expr
    head: ir.Expr
    warp: ir.Expr
    lane: ir.Expr

    @property
    def heads(self) -> Heads:
        return self.kernel.heads

    def run(self) -> None:
        heads, keys, group = self.heads, self.kernel.keys, self.heads.group
        shape = (keys, heads.d + CHUNK)
        k = warp.by_address(shape, heads.dtype, "shared")
        v = warp.by_address(shape, heads.dtype, "shared")
        state = self._start()
        rows = [T.bind(self.warp * 16 + self.lane // 4 + 8 * i) for i in range(2)]
        places = [self._place(r) for r in rows]
        ends = [(T.bind(self.sight.low(at)), T.bind(self.sight.high(at))) for at, _ in places]
        scale = base2(self.kernel.queries.scale)
        query = self._query(places) if heads.d <= KEPT else None
        early = T.bind(ratio(self.tile * ROWS, group))
        late = T.bind(tirx.min(ratio(self.tile * ROWS + (ROWS - 1), group), self.count - 1))
        begin = T.bind(ratio(self.sight.low(early), keys) * keys)
        end = T.bind(self.sight.high(late))
        whole = T.bind(self.sight.low(late)), T.bind(self.sight.high(early))
        with when(begin < end):
            self._bring(k, self.source.keys, begin)
            with T.serial(0, warp.ceil_div(end - begin, keys)) as i:
                key = T.bind(begin + i * keys)
                self._bring(v, self.source.values, key)
                warp.wait_copies(1)
                warp.barrier()
                scores = self._scores(k, query, places)
                warp.barrier()
                with when(key + keys < end):
                    self._bring(k, self.source.keys, key + keys)
                with when(key + keys >= end):
                    warp.close_copies()  # an empty group, so that one may always be under way
                self._soften(scores, scale)
                self._mask(scores, key, whole, places, ends)
                p = self._weights(state, scores)
                warp.wait_copies(1)
                warp.barrier()
                self._weigh(state, p, v)
                warp.barrier()
        self._store(state, rows, places)

    def _start(self) -> _State:
        tiles = self.heads.d // 8
        state = _State(
            T.alloc_buffer((tiles, 4), "float32", scope="local"),
            T.alloc_buffer((2,), "float32", scope="local"),
            T.alloc_buffer((2,), "float32", scope="local"),
        )
        for j in range(tiles):
            for e in range(4):
                T.buffer_store(state.out, f32(0), [j, e])
        for i in range(2):
            T.buffer_store(state.m, f32(NO_SCORE), [i])
            T.buffer_store(state.den, f32(0), [i])
        return state

    def _place(self, row: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
        """Position in the sequence and query head of a row; past the end the last position."""
        at = T.bind(self.tile * ROWS + row)
        group = self.heads.group
        position = T.bind(tirx.min(ratio(at, group), self.count - 1))
        return position, T.bind(self.head * group + rest(at, group))

    def _query(self, places: list[tuple[ir.Expr, ir.Expr]]) -> ir.Var:
        steps = self.heads.d // 16
        query = T.alloc_buffer((steps, 4), "uint32", scope="local")
        for s in range(steps):
            self._query_step(query, s, s, places)
        return query

    def _query_step(
        self, query: ir.Var, to: int, step: int, places: list[tuple[ir.Expr, ir.Expr]]
    ) -> None:
        """The fragment of 16 dims."""
        t = self.lane % 4
        for e in range(4):
            at, head = places[e % 2]
            place = [self.first + at, head, 16 * step + 8 * (e // 2) + 2 * t]
            source = warp.address(self.kernel.queries.q, place)
            warp.copy(4, warp.address(query, [to, e]), source)

    def _bring(self, shared: ir.Var, row: Row, key: ir.Expr) -> None:
        """Start copying the tile of keys from `key` on; past the end the last one comes again."""
        heads, keys = self.heads, self.kernel.keys
        thread, chunks = T.bind(self.warp * warp.WARP + self.lane), heads.d // CHUNK
        threads = WARPS * warp.WARP
        for j in range(keys * chunks // threads):
            at = T.bind(thread + j * threads)
            line, column = T.bind(ratio(at, chunks)), T.bind(rest(at, chunks) * CHUNK)
            buffer, where = row(T.bind(tirx.min(key + line, self.source.length - 1)))
            *lead, slot = where
            place = [*lead, self.head, slot, column] if lead else [slot, self.head, column]
            to = warp.address(shared, [line, column])
            warp.copy_rest_zero(to, warp.address(buffer, place), i32(16))
        warp.close_copies()

    def _scores(
        self, k: ir.Var, query: ir.Var | None, places: list[tuple[ir.Expr, ir.Expr]]
    ) -> ir.Var:
        """`scores[tile of 8 keys, element of mma]`."""
        tiles = self.kernel.keys // 8
        scores = T.alloc_buffer((tiles, 4), "float32", scope="local")
        for j in range(tiles):
            for e in range(4):
                T.buffer_store(scores, f32(0), [j, e])
        line, square = T.bind(self.lane % 8), T.bind(self.lane // 8)
        low, high = T.bind(square % 2 * 8), T.bind(square // 2 * 8)
        for s in range(self.heads.d // 16):
            fragment, at = query, s
            if fragment is None:
                fragment, at = T.alloc_buffer((1, 4), "uint32", scope="local"), 0
                self._query_step(fragment, 0, s, places)
            a = [fragment[at, e] for e in range(4)]
            for j in range(tiles // 2):
                b = T.alloc_buffer((4,), "uint32", scope="local")
                source = warp.address(k, [16 * j + high + line, 16 * s + low])
                warp.load_squares(warp.address(b, [0]), source, transposed=False)
                for half in range(2):
                    sums = warp.address(scores, [2 * j + half, 0])
                    warp.mma(self.heads.dtype, sums, a, [b[2 * half], b[2 * half + 1]])
        return scores

    def _soften(self, scores: ir.Var, scale: ir.Expr) -> None:
        for j in range(self.kernel.keys // 8):
            for e in range(4):
                T.buffer_store(scores, self.heads.cut(scores[j, e] * scale), [j, e])

    def _mask(
        self,
        scores: ir.Var,
        key: ir.Expr,
        whole: tuple[ir.Expr, ir.Expr],
        places: list[tuple[ir.Expr, ir.Expr]],
        ends: list[tuple[ir.Expr, ir.Expr]],
    ) -> None:
        keys, sight = self.kernel.keys, self.sight
        plain = tirx.all(key >= whole[0], key + keys <= whole[1])
        if sight.plain is not None:
            plain = tirx.all(plain, sight.plain(key, key + (keys - 1)))
        with when(tirx.Not(plain)):
            for j in range(keys // 8):
                for e in range(4):
                    at = T.bind(key + 8 * j + 2 * (self.lane % 4) + e % 2)
                    (position, _), (low, high) = places[e // 2], ends[e // 2]
                    seen = tirx.all(at >= low, at < high)
                    if sight.also is not None:
                        seen = tirx.all(seen, sight.also(position, at))
                    value = tirx.Select(seen, scores[j, e], f32(MASKED))
                    T.buffer_store(scores, value, [j, e])

    def _weights(self, state: _State, scores: ir.Var) -> ir.Var:
        """P as half values, `[step of 16 keys, element of A]`; O fades."""
        tiles, dtype = self.kernel.keys // 8, self.heads.dtype
        for i in range(2):
            places = [(j, 2 * i + e) for j in range(tiles) for e in range(2)]
            fade = rising(scores, places, state.m, state.den, i)
            for j in range(self.heads.d // 8):
                for e in (2 * i, 2 * i + 1):
                    T.buffer_store(state.out, state.out[j, e] * fade, [j, e])
        p = T.alloc_buffer((tiles // 2, 4), "uint32", scope="local")
        for s in range(tiles // 2):
            for e in range(4):
                j, i = 2 * s + e // 2, e % 2
                T.buffer_store(
                    p, warp.pack_pair(dtype, scores[j, 2 * i], scores[j, 2 * i + 1]), [s, e]
                )
        return p

    def _weigh(self, state: _State, p: ir.Var, v: ir.Var) -> None:
        line, square = T.bind(self.lane % 8), T.bind(self.lane // 8)
        low, high = T.bind(square % 2 * 8), T.bind(square // 2 * 8)
        for s in range(self.kernel.keys // 16):
            a = [p[s, e] for e in range(4)]
            for j in range(self.heads.d // 16):
                b = T.alloc_buffer((4,), "uint32", scope="local")
                source = warp.address(v, [16 * s + low + line, 16 * j + high])
                warp.load_squares(warp.address(b, [0]), source, transposed=True)
                for half in range(2):
                    sums = warp.address(state.out, [2 * j + half, 0])
                    warp.mma(self.heads.dtype, sums, a, [b[2 * half], b[2 * half + 1]])

    def _store(
        self, state: _State, rows: list[ir.Expr], places: list[tuple[ir.Expr, ir.Expr]]
    ) -> None:
        queries, t = self.kernel.queries, T.bind(self.lane % 4)
        for i, ((at, head), row) in enumerate(zip(places, rows, strict=True)):
            total = of_all(state.den[i])
            share = inverse(total)
            inside = self.tile * ROWS + row < self.count * self.heads.group
            with when(inside):
                query = T.bind(self.first + at)
                with when(self.heads.attends(head)):
                    self._store_row(state, i, share, [query, head], t)
                with when(t == 0):
                    score = T.bind(joint(state.m[i], total))
                    T.buffer_store(queries.lse, score, [query, head])
                    self.heads.tell(queries.output, query, head, score)

    def _store_row(
        self, state: _State, i: int, share: ir.Expr, place: list[ir.Expr], t: ir.Expr
    ) -> None:
        for j in range(self.heads.d // 8):
            values = [state.out[j, 2 * i + e] * share for e in range(2)]
            packed = variable(warp.pack_pair(self.heads.dtype, *values))
            to = warp.address(self.kernel.queries.output, [*place, 8 * j + 2 * t])
            warp.copy(4, to, warp.address(packed, [0]))

"""Decode attention of the paged KV cache: one query a sequence, keys cut into parts.

    out = sum_p out_p 2**(lse_p - lse),    lse = log2 sum_p 2**lse_p     over the parts p of a row

A step reads every cached row once, so all that counts is bytes under way. Work is cut into (KV
head, part): the host chooses pages a part so that about `Plan.blocks` blocks exist for any batch
and the length; sequence b owns the parts from `b + page_indptr[b] / pages` on, which every block
finds without a loop over the batch that depends on itself. Local layers cut only their window. One
kernel leaves normalised parts and their lse in a workspace of `(batch + blocks / heads)` rows, a
second one joins them; a workspace is safe here, attention is never inside a CUDA graph.

The query heads of a KV head are the 8 columns or rows of a tensor-core product, so their number is
free. One page of 16 keys a warp and step, from global memory to registers and nowhere else:

    S[heads, keys]   = Q K^T      K is the B side: lane (g, t) reads 16 bytes of dims of key g, and
                                  dims are numbered so that these are its elements (as is Q)
    O^T[dims, heads] = V^T P^T    P^T is S's own registers; V^T: lane (g, t) reads 16 bytes of dims
                                  of keys 2t, 2t + 1, 2t + 8, 2t + 9 and weaves pairs of keys

    bytes under way: 512 d / 128 B a lane and page; 4 warps, 3 or 4 blocks a multiprocessor: 96 KiB
    at d = 128, where 25 KiB hide the latency at 4 TB/s (700 ns, 132 multiprocessors)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
    workspace,
)
from .awq_pairs import weave

JOINERS = 8  # warps that join the parts of a row
ROWS = 8  # query heads of one product


@dataclass(frozen=True)
class Plan:
    """What a measurement may choose: how many blocks to aim at, and warps of a block."""

    blocks: int = 528  # two waves of two on 132 multiprocessors
    warps: int = 4

    def parts(self, heads: Heads, keys: int, batch: int = 1) -> tuple[int, int]:
        """Pages of a part and blocks of a launch, for `batch` sequences of `keys` keys."""
        pages, across = batch * -(-keys // heads.page), heads.num_kv * -(-heads.group // ROWS)
        part = max(self.warps, -(-pages * across // self.blocks))
        return part, (batch + pages // part) * across

    def under_way(self, heads: Heads) -> int:
        """Bytes of keys and values that a block has asked for while it waits."""
        return self.warps * heads.page * heads.d * 2 * 2


USUAL = Plan()


def decode(heads: Heads, sliding: bool = False, plan: Plan = USUAL) -> PrimFunc:
    """`q, output [batch, num_q, d]`, `lse [batch, num_q]` float32 in base 2.

    `sliding`: `length_info [3, batch]` names a window of slots and an attention sink.
    """
    return function("batch_decode_paged_kv", partial(_emit, heads, sliding, plan))


def _emit(heads: Heads, sliding: bool, plan: Plan, a: Arguments) -> None:
    batch, pages = a.size("batch"), a.size("nnz_pages")
    q = a.tensor("q", (batch, heads.num_q, heads.d), heads.dtype)
    cache = a.tensor("pages", heads.pages(a.size("num_pages", "int64")), heads.dtype, view=True)
    indptr, values = a.view("page_indptr", (batch + 1,)), a.view("page_values", (pages,))
    info = a.view("length_info", (3, batch) if sliding else (batch,))
    k_pos, q_pos = a.view("k_rope_pos_offset", (batch,)), a.view("q_rope_position", (batch,))
    output = a.tensor("output", (batch, heads.num_q, heads.d), heads.dtype)
    lse = a.tensor("lse", (batch, heads.num_q), "float32")
    a.number("rotary_mode", "int32")
    a.number("rope_scale", "float32")
    a.number("rope_theta", "float32")
    scale = a.number("sm_scale", "float32")

    cut = _Cut.of(heads, plan, scale, batch, pages, indptr)
    part_out = workspace("part_out", (cut.slots, heads.num_q, heads.d))
    part_lse = workspace("part_lse", (cut.slots, heads.num_q))
    tiles = -(-heads.group // ROWS)
    blocks = [cut.slots, i32(heads.num_kv * tiles)]
    with warp.kernel("int32", blocks, plan.warps) as (slot, tile, w, lane):
        b = cut.sequence(slot, lane)
        some = T.bind(tirx.max(b, i32(0)))  # a part too many reads what there is and keeps nothing
        begin = T.bind(indptr[some])
        count = T.bind(indptr[some + 1] - begin)
        last = info[0, some] if sliding else info[some]
        length = T.bind(tirx.Select(count > 0, (count - 1) * heads.page + last, i32(0)))
        first = heads.first_seen(scale, q_pos[some], k_pos[some])
        seen = _Seen(
            length,
            T.bind(info[1, some] if sliding else first),
            T.bind(info[2, some]) if sliding else None,
        )
        start, stop = cut.range(slot, some, count, seen.first)
        stop = T.bind(tirx.Select(b < 0, start, stop))
        head, group = T.bind(ratio(tile, tiles)), T.bind(rest(tile, tiles) * ROWS)
        block = _Block(heads, plan.warps, cache, values, begin, head, group, w, lane)
        state = block.run(q, some, base2(scale), seen, start, stop)
        block.meet(state, part_out, part_lse, slot)
    _join(heads, cut, part_out, part_lse, output, lse, batch)


@dataclass(frozen=True)
class _Cut:
    """How sequences are cut into parts of `pages` pages; local layers have `each` a sequence."""

    heads: Heads
    scale: ir.Expr
    batch: ir.Expr
    indptr: ir.Var
    pages: ir.Expr
    each: ir.Expr | None
    slots: ir.Expr

    @classmethod
    def of(
        cls,
        heads: Heads,
        plan: Plan,
        scale: ir.Expr,
        batch: ir.Expr,
        pages: ir.Expr,
        indptr: ir.Var,
    ) -> _Cut:
        def enough(total: ir.Expr) -> ir.Expr:
            blocks = total * (heads.num_kv * -(-heads.group // ROWS))
            return tirx.max(i32(plan.warps), warp.ceil_div(blocks, plan.blocks))

        if heads.window is None:
            part = host("part_pages", enough(pages))
            slots = host("slots", batch + ratio(pages, part))
            return cls(heads, scale, batch, indptr, part, None, slots)
        near = host("near", tirx.min(pages, i32(-(-heads.window // heads.page) + 1)))
        local = scale < f32(0)
        part = host("part_pages", enough(tirx.Select(local, batch * near, pages)))
        each = host("each", ratio(near + part - 1, part))
        slots = host("slots", tirx.Select(local, batch * each, batch + ratio(pages, part)))
        return cls(heads, scale, batch, indptr, part, each, slots)

    def first(self, b: ir.Expr) -> ir.Expr:
        """The first part of sequence b."""
        all_keys = b + ratio(self.indptr[b], self.pages)
        if self.each is None:
            return all_keys
        return tirx.if_then_else(self.scale < f32(0), b * self.each, all_keys)

    def sequence(self, slot: ir.Expr, lane: ir.Expr) -> ir.Expr:
        return owner(slot, lane, self.batch, self.first)

    def range(
        self, slot: ir.Expr, b: ir.Expr, count: ir.Expr, seen: ir.Expr
    ) -> tuple[ir.Expr, ir.Expr]:
        """The pages of a part; those before the window belong to none."""
        at = T.bind((slot - self.first(b)) * self.pages)
        if self.each is not None:
            at = T.bind(at + tirx.Select(self.scale < f32(0), ratio(seen, self.heads.page), i32(0)))
        return at, T.bind(tirx.min(at + self.pages, count))


@dataclass(frozen=True)
class _Seen:
    """Which slots of a sequence count: those before `length` that are not before `first`."""

    length: ir.Expr
    first: ir.Expr
    sink: ir.Expr | None  # so many first ones count too

    def __call__(self, slot: ir.Expr) -> ir.Expr:
        late = slot >= self.first
        late = late if self.sink is None else tirx.any(late, slot < self.sink)
        return tirx.all(slot < self.length, late)


@dataclass(frozen=True)
class _State:
    """Of a warp: O^T in `out[dim pair, element of mma]`, maximum and sum of head g."""

    out: ir.Var
    m: ir.Var
    den: ir.Var


@dataclass(frozen=True)
class _Block:
    """One part of one KV head for up to 8 of its query heads."""

    heads: Heads
    warps: int
    cache: ir.Var
    values: ir.Var
    begin: ir.Expr  # of the sequence's page list
    head: ir.Expr
    group: ir.Expr  # the first query head of the group
    warp: ir.Expr
    lane: ir.Expr

    def run(
        self,
        q: ir.Var,
        b: ir.Expr,
        scale: ir.Expr,
        seen: _Seen,
        start: ir.Expr,
        stop: ir.Expr,
    ) -> _State:
        pairs = self.heads.d // 16
        g, t = T.bind(self.lane // 4), T.bind(self.lane % 4)
        state = _State(
            T.alloc_buffer((pairs, 4), "float32", scope="local"),
            variable(f32(NO_SCORE)),
            variable(f32(0)),
        )
        for j in range(pairs):
            for e in range(4):
                T.buffer_store(state.out, f32(0), [j, e])
        query = self._query(q, b, g, t)
        number = variable(self._number(start + self.warp, stop))
        with T.serial(0, warp.ceil_div(tirx.max(stop - start, i32(0)), self.warps)) as i:
            page = T.bind(start + i * self.warps + self.warp)
            with when(page < stop):
                now = T.bind(number[0].astype("int64"))
                keys, rows = self._load(now, page, seen.length, g, t)
                T.buffer_store(number, self._number(page + self.warps, stop), [0])
                scores = self._scores(query, keys, scale, seen, page, t)
                self._weigh(state, scores, rows, t)
        return state

    def _number(self, page: ir.Expr, stop: ir.Expr) -> ir.Expr:
        """The page's number, a step before it is needed."""
        return tirx.if_then_else(page < stop, self.values[self.begin + page], i32(0))

    def _query(self, q: ir.Var, b: ir.Expr, g: ir.Expr, t: ir.Expr) -> ir.Var:
        """Head g's dims as the lane of t holds them, zero where the group has no head g."""
        query = T.alloc_buffer((self.heads.d // 8,), "uint32", scope="local")
        for i in range(self.heads.d // 8):
            T.buffer_store(query, warp.u32(0), [i])
        with when(self.group + g < self.heads.group):
            row = T.bind(self.head * self.heads.group + self.group + g)
            for at, dim, size in _chunks(self.heads.d, 4):
                source = warp.address(q, [b, row, dim + t * (size // 2)])
                warp.copy(size, warp.address(query, [at]), source)
        return query

    def _load(
        self, number: ir.Expr, page: ir.Expr, length: ir.Expr, g: ir.Expr, t: ir.Expr
    ) -> tuple[ir.Var, ir.Var]:
        """A page's keys and values; slots that were never written repeat the last one that was."""
        d, size = self.heads.d, self.heads.page
        keys = T.alloc_buffer((2, d // 8), "uint32", scope="local")
        rows = T.alloc_buffer((4, d // 16), "uint32", scope="local")
        last = T.bind(tirx.min(length - page * size, i32(size)) - 1)
        for i in range(2):
            slot = T.bind(tirx.min(g + 8 * i, last))
            for at, dim, width in _chunks(d, 4):
                place = [number, 0, self.head, slot, dim + t * (width // 2)]
                warp.copy(width, warp.address(keys, [i, at]), warp.address(self.cache, place))
        for i in range(4):
            slot = T.bind(tirx.min(2 * t + (i % 2 + i // 2 * 8), last))
            for at, dim, width in _chunks(d, 8):
                place = [number, 1, self.head, slot, dim + g * (width // 2)]
                warp.copy(width, warp.address(rows, [i, at]), warp.address(self.cache, place))
        return keys, rows

    def _scores(
        self, query: ir.Var, keys: ir.Var, scale: ir.Expr, seen: _Seen, page: ir.Expr, t: ir.Expr
    ) -> ir.Var:
        """`scores[half, element]`: keys 8 half + 2t + element of head g."""
        scores = T.alloc_buffer((2, 4), "float32", scope="local")
        none = warp.u32(0)
        for i in range(2):
            for e in range(4):
                T.buffer_store(scores, f32(0), [i, e])
            for s in range(self.heads.d // 16):
                a = [query[2 * s], none, query[2 * s + 1], none]
                b = [keys[i, 2 * s], keys[i, 2 * s + 1]]
                warp.mma(self.heads.dtype, warp.address(scores, [i, 0]), a, b)
            for e in range(2):
                slot = T.bind(page * self.heads.page + 2 * t + (8 * i + e))
                value = self.heads.cut(scores[i, e] * scale)
                T.buffer_store(scores, tirx.Select(seen(slot), value, f32(MASKED)), [i, e])
        return scores

    def _weigh(self, state: _State, scores: ir.Var, rows: ir.Var, t: ir.Expr) -> None:
        dtype, places = self.heads.dtype, [(i, e) for i in range(2) for e in range(2)]
        fade = rising(scores, places, state.m, state.den, 0)
        fades = [T.bind(warp.of_lane(fade, (2 * t + e) * 4)) for e in range(2)]
        p = [T.bind(warp.pack_pair(dtype, scores[i, 0], scores[i, 1])) for i in range(2)]
        for j in range(self.heads.d // 16):
            for e in range(4):
                T.buffer_store(state.out, state.out[j, e] * fades[e % 2], [j, e])
            early, late = weave(rows[0, j], rows[1, j]), weave(rows[2, j], rows[3, j])
            values = [early[0], early[1], late[0], late[1]]
            warp.mma(dtype, warp.address(state.out, [j, 0]), [T.bind(v) for v in values], p)

    def meet(self, state: _State, part_out: ir.Var, part_lse: ir.Var, slot: ir.Expr) -> None:
        """Join the warps' states and leave them as one part."""
        heads, d = self.heads, self.heads.d
        some = min(ROWS, heads.group)
        # four floats more than a row holds: heads 2t lie in different banks
        outs = T.alloc_buffer((self.warps, some, d + 4), "float32", scope="shared")
        tops = T.alloc_buffer((self.warps, ROWS), "float32", scope="shared")
        sums = T.alloc_buffer((self.warps, ROWS), "float32", scope="shared")
        g, t = T.bind(self.lane // 4), T.bind(self.lane % 4)
        total = of_all(state.den[0])
        with when(t == 0):
            T.buffer_store(tops, state.m[0], [self.warp, g])
            T.buffer_store(sums, total, [self.warp, g])
        for e in range(2):
            with when(2 * t + e < some):
                for at, dim, width in _chunks(d, 8):
                    for j in range(width // 4):
                        for half in range(2):
                            place = [self.warp, 2 * t + e, dim + g * (width // 2) + (2 * j + half)]
                            T.buffer_store(outs, state.out[at + j, 2 * half + e], place)
        warp.barrier()
        threads = self.warps * warp.WARP
        thread = T.bind(self.warp * warp.WARP + self.lane)
        with T.serial(0, i32(-(-some * d // threads))) as i:
            at = T.bind(i * threads + thread)
            h, dim = T.bind(ratio(at, d)), T.bind(rest(at, d))
            with when(tirx.all(h < some, self.group + h < heads.group)):
                top = tops[0, h]
                for v in range(1, self.warps):
                    top = tirx.max(top, tops[v, h])
                top = T.bind(top)
                weights = [T.bind(warp.exp2(tops[v, h] - top)) for v in range(self.warps)]
                total = T.bind(sum((sums[v, h] * weights[v] for v in range(self.warps)), f32(0)))
                out = sum((outs[v, h, dim] * weights[v] for v in range(self.warps)), f32(0))
                head = T.bind(self.head * heads.group + self.group + h)
                T.buffer_store(part_out, out * inverse(total), [slot, head, dim])
                with when(dim == 0):
                    T.buffer_store(part_lse, joint(top, total), [slot, head])


def _chunks(d: int, lanes: int) -> list[tuple[int, int, int]]:
    """How `lanes` lanes share a row of d half values: (register, first dim, bytes a lane).

    16 bytes a lane as far as they go, then 8 and 4, so that neighbours read one stretch.
    """
    found, dim, at = [], 0, 0
    for size in (16, 8, 4):
        step = lanes * size // 2
        while d - dim >= step:
            found.append((at, dim, size))
            dim, at = dim + step, at + size // 4
    return found


def _join(
    heads: Heads,
    cut: _Cut,
    part_out: ir.Var,
    part_lse: ir.Var,
    output: ir.Var,
    lse: ir.Var,
    batch: ir.Expr,
) -> None:
    """The second kernel: a block a query head, its warps share the parts."""
    wide = -(-heads.d // warp.WARP)
    with warp.kernel("int32", [batch, i32(heads.num_q)], JOINERS) as (b, head, w, lane):
        first = T.bind(cut.first(b))
        count = T.bind(cut.first(b + 1) - first)
        top = variable(f32(NO_SCORE))
        with T.serial(0, warp.ceil_div(count, warp.WARP)) as i:
            p = T.bind(tirx.min(i * warp.WARP + lane, count - 1))
            T.buffer_store(top, tirx.max(top[0], part_lse[first + p, head]), [0])
        highest = top[0]
        for mask in (16, 8, 4, 2, 1):
            highest = T.bind(tirx.max(highest, warp.other_lane(highest, mask)))
        sums = T.alloc_buffer((wide,), "float32", scope="local")
        total = variable(f32(0))
        for i in range(wide):
            T.buffer_store(sums, f32(0), [i])
        dims = [T.bind(tirx.min(lane + warp.WARP * i, i32(heads.d - 1))) for i in range(wide)]
        with T.serial(0, warp.ceil_div(tirx.max(count - w, i32(0)), JOINERS)) as i:
            p = T.bind(first + w + i * JOINERS)
            score = T.bind(part_lse[p, head])
            seen = score > f32(NO_SCORE)
            weight = T.bind(tirx.Select(seen, warp.exp2(score - highest), f32(0)))
            T.buffer_store(total, total[0] + weight, [0])
            for at, dim in enumerate(dims):
                T.buffer_store(sums, sums[at] + part_out[p, head, dim] * weight, [at])
        outs = T.alloc_buffer((JOINERS, warp.WARP * wide), "float32", scope="shared")
        totals = T.alloc_buffer((JOINERS,), "float32", scope="shared")
        for at in range(wide):
            T.buffer_store(outs, sums[at], [w, lane + warp.WARP * at])
        with when(lane == 0):
            T.buffer_store(totals, total[0], [w])
        warp.barrier()
        thread = T.bind(w * warp.WARP + lane)
        with when(thread < heads.d):
            all_of = T.bind(sum((totals[v] for v in range(JOINERS)), f32(0)))
            out = sum((outs[v, thread] for v in range(JOINERS)), f32(0)) * inverse(all_of)
            heads.put(output, [b, head, thread], out)
            with when(thread == 0):
                score = T.bind(joint(highest, all_of))
                T.buffer_store(lse, score, [b, head])
                heads.tell(output, b, head, score)

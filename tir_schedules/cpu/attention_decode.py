"""Decode attention of the paged KV cache: one query per sequence.

Decode is bound by reading K and V, so a cached row is read once for all ``group`` query heads that
share it, and the work is split into (KV head, sequence, range of ``SPLIT`` keys) so that all
cores read even when there is one sequence. Every task leaves its softmax state in a workspace; a
second loop merges the ranges ``s`` of a head::

    output = sum_s out_s 2**(m_s - m) / sum_s den_s 2**(m_s - m),    m = max_s m_s

Lanes run along the head dimension, the only long axis of a single query.
"""

from __future__ import annotations

import math
from operator import add
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_schedules.cpu.attention_rope import Rotate, rotated
from tir_schedules.cpu.attention_spare import tell_lse, told_heads
from tir_schedules.cpu.attention_tile import (
    MASKED,
    NO_SCORE,
    Heads,
    at,
    first_in_window,
    inverse,
    score_scale,
)
from tir_schedules.cpu.kv_pages import cached_length, cached_slot, length_info
from tir_schedules.cpu.vector_math import LOG2_E, exp2, fold, tanh
from tir_schedules.cpu.vector_unit import VectorUnit

SPLIT = 256  # keys of one task
BLOCK = 64  # keys whose scores are exponentiated together


class Step:
    """The statements of one block of keys for the query heads of one KV head, as TIR macros."""

    def __init__(
        self, heads: Heads, unit: VectorUnit, rope_scaling: dict[str, Any], softcap: float | None
    ) -> None:
        group, d = heads.group, heads.d_qk
        lanes = math.gcd(unit.lanes, d)
        # As many query heads as divide the group and leave registers for the row being read.
        heads_at_once = max(n for n in range(1, 9) if group % n == 0)
        rope = rotated(d, rope_scaling)
        self.load_q = _load_q(group, d, rope)
        self.dot = _dot(group, heads_at_once, d, lanes, rope)
        self.softmax = _softmax(group, unit.lanes, softcap)
        self.weigh = _weigh(group, heads_at_once, d, lanes)


def _load_q(group: int, d_qk: int, rope: Rotate) -> Any:
    @T.macro
    def load_q(
        Q: T.Buffer, q: T.Buffer, b: T.int32, head: T.int32, pos: T.int32,
        rotary_mode: T.int32, theta: T.float32, rope_scale: T.float32, scale: T.float32,
    ) -> None:  # fmt: skip
        for g in T.serial(group):
            if rotary_mode == 1:
                for d in T.serial(d_qk):
                    Q[g, d] = rope(q, (b, head * group + g), pos, d, theta, rope_scale) * scale
            else:
                for d in T.serial(d_qk):
                    Q[g, d] = T.Cast("float32", q[b, head * group + g, d]) * scale

    return load_q


def _dot(group: int, at_once: int, d_qk: int, lanes: int, rope: Rotate) -> Any:
    @T.macro
    def dot(
        S: T.Buffer, Q: T.Buffer, pages: T.Buffer, row: T.int32, j: T.int32,
        rotary_mode: T.int32, pos: T.int32, theta: T.float32, rope_scale: T.float32,
    ) -> None:  # fmt: skip
        """``S[g, j] = sum_d Q[g, d] K[row, d]``."""
        for go in T.serial(group // at_once):
            with T.sblock("dot"):
                T.reads()
                T.writes()
                acc = T.sblock_alloc_buffer((at_once, lanes), "float32", scope="local")
                for g in T.unroll(at_once):
                    for i in T.vectorized(lanes):
                        acc[g, i] = T.float32(0)
                if rotary_mode == 1:
                    for d in T.serial(d_qk):
                        for g in T.unroll(at_once):
                            acc[g, 0] += Q[go * at_once + g, d] * rope(
                                pages, row, pos, d, theta, rope_scale
                            )
                else:
                    for c in T.serial(d_qk // lanes):
                        for g in T.unroll(at_once):
                            for i in T.vectorized(lanes):
                                acc[g, i] += Q[go * at_once + g, c * lanes + i] * T.Cast(
                                    "float32", at(pages, row, c * lanes + i)
                                )
                for g in T.unroll(at_once):
                    S[go * at_once + g, j] = fold(acc[g, T.ramp(0, 1, lanes)], lanes, add)

    return dot


def _softmax(group: int, lanes: int, softcap: float | None) -> Any:
    chunks = BLOCK // lanes
    cap = (softcap or 1.0) * LOG2_E

    def soften(score: Any) -> Any:
        return score if softcap is None else T.float32(cap) * tanh(score * T.float32(1 / cap))

    @T.macro
    def softmax(S: T.Buffer, m: T.Buffer, den: T.Buffer, alpha: T.Buffer, keys: T.int32) -> None:
        """Scores to weights ``2**(S - m)``; the block's scores past ``keys`` become zero."""
        for g in T.serial(group):
            with T.sblock("softmax"):
                T.reads()
                T.writes()
                top = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                total = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                peak = T.sblock_alloc_buffer((1,), "float32", scope="local")
                for i in T.vectorized(lanes):
                    top[i] = m[g]
                    total[i] = T.float32(0)
                for c in T.serial(chunks):
                    for i in T.vectorized(lanes):
                        S[g, c * lanes + i] = T.Select(
                            c * lanes + i < keys, soften(S[g, c * lanes + i]), T.float32(MASKED)
                        )
                        top[i] = T.max(top[i], S[g, c * lanes + i])
                peak[0] = fold(top[T.ramp(0, 1, lanes)], lanes, T.max)
                for c in T.serial(chunks):
                    for i in T.vectorized(lanes):
                        S[g, c * lanes + i] = exp2(S[g, c * lanes + i] - peak[0])
                        total[i] += S[g, c * lanes + i]
                alpha[g] = exp2(m[g] - peak[0])
                den[g] = den[g] * alpha[g] + fold(total[T.ramp(0, 1, lanes)], lanes, add)
                m[g] = peak[0]

    return softmax


def _weigh(group: int, at_once: int, d_v: int, lanes: int) -> Any:
    # Register tile: heads x chunks of the head dimension, at most 16 accumulators.
    chunks = max(n for n in range(1, 5) if (d_v // lanes) % n == 0 and n * at_once <= 16)

    @T.macro
    def weigh(
        out: T.Buffer, P: T.Buffer, alpha: T.Buffer, pages: T.Buffer, head: T.int32,
        page: T.Buffer, slot: T.Buffer, keys: T.int32,
    ) -> None:  # fmt: skip
        """``out[g, d] = out[g, d] alpha[g] + sum_j P[g, j] V[page[j], head, slot[j], d]``."""
        for go in T.serial(group // at_once):
            for co in T.serial(d_v // (lanes * chunks)):
                with T.sblock("weigh"):
                    T.reads()
                    T.writes()
                    acc = T.sblock_alloc_buffer((at_once, chunks * lanes), "float32", scope="local")
                    for g in T.unroll(at_once):
                        for c in T.unroll(chunks):
                            for i in T.vectorized(lanes):
                                acc[g, c * lanes + i] = (
                                    out[go * at_once + g, (co * chunks + c) * lanes + i]
                                    * alpha[go * at_once + g]
                                )
                    for j in T.serial(keys):
                        for c in T.unroll(chunks):
                            for g in T.unroll(at_once):
                                for i in T.vectorized(lanes):
                                    acc[g, c * lanes + i] += P[go * at_once + g, j] * T.Cast(
                                        "float32",
                                        pages[
                                            T.Cast("int64", page[j]),
                                            1,
                                            head,
                                            slot[j],
                                            (co * chunks + c) * lanes + i,
                                        ],
                                    )
                    for g in T.unroll(at_once):
                        for c in T.unroll(chunks):
                            for i in T.vectorized(lanes):
                                out[go * at_once + g, (co * chunks + c) * lanes + i] = acc[
                                    g, c * lanes + i
                                ]

    return weigh


def decode_paged(
    heads: Heads,
    unit: VectorUnit,
    rope_scaling: dict[str, Any],
    softcap: float | None = None,
    sliding: bool = False,
    page_size: int = 16,
    window: int | None = None,
) -> PrimFunc:
    """Attention of one query per sequence over its cached keys.

    ``q, output [b, num_q, d]``, ``pages [num_pages, 2, num_kv, page_size, d]``, ``lse [b, num_q]``
    float32 in base 2. ``window``: see ``first_in_window``.
    """
    t = Step(heads, unit, rope_scaling, softcap)
    real, tell = told_heads(heads), tell_lse(heads)
    group, h_q, h_kv, d, dtype = heads.group, heads.num_q, heads.num_kv, heads.d_qk, heads.dtype
    lanes = math.gcd(unit.lanes, d)

    def slots(batch: Any, nnz_pages: Any) -> Any:
        """An upper bound of the ranges of all sequences together."""
        return batch + T.floordiv(nnz_pages * page_size, SPLIT)

    @T.prim_func(s_tir=True)
    def batch_decode_paged_kv(
        var_q: T.handle,
        var_pages: T.handle,
        var_page_indptr: T.handle,
        var_page_values: T.handle,
        var_length_info: T.handle,
        var_k_rope_pos_offset: T.handle,
        var_q_rope_position: T.handle,
        var_output: T.handle,
        var_lse: T.handle,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        batch = T.int32()
        nnz_pages = T.int32()
        num_pages = T.int64()
        pages_offset = T.int64()
        page_indptr_offset = T.int32()
        page_values_offset = T.int32()
        k_pos_offset = T.int32()
        q_pos_offset = T.int32()
        info_offset = T.int32()
        q = T.match_buffer(var_q, (batch, h_q, d), dtype)
        pages = T.match_buffer(
            var_pages, (num_pages, 2, h_kv, page_size, d), dtype, elem_offset=pages_offset
        )
        page_indptr = T.match_buffer(
            var_page_indptr, (batch + 1,), "int32", elem_offset=page_indptr_offset
        )
        page_values = T.match_buffer(
            var_page_values, (nnz_pages,), "int32", elem_offset=page_values_offset
        )
        info = length_info(var_length_info, batch, sliding, info_offset)
        k_pos = T.match_buffer(var_k_rope_pos_offset, (batch,), "int32", elem_offset=k_pos_offset)
        q_pos = T.match_buffer(var_q_rope_position, (batch,), "int32", elem_offset=q_pos_offset)
        output = T.match_buffer(var_output, (batch, h_q, d), dtype)
        lse = T.match_buffer(var_lse, (batch, h_q), "float32")

        with T.sblock("root"):
            T.reads()
            T.writes()
            # The softmax state of every (KV head, slot); a slot is one range of one sequence.
            out_all = T.sblock_alloc_buffer((h_kv, slots(batch, nnz_pages), group, d), "float32")
            m_all = T.sblock_alloc_buffer((h_kv, slots(batch, nnz_pages), group), "float32")
            den_all = T.sblock_alloc_buffer((h_kv, slots(batch, nnz_pages), group), "float32")
            for p in T.parallel(h_kv * slots(batch, nnz_pages)):
                with T.sblock("range"):
                    T.reads()
                    T.writes()
                    Q = T.sblock_alloc_buffer((group, d), "float32")
                    S = T.sblock_alloc_buffer((group, BLOCK), "float32")
                    out = T.sblock_alloc_buffer((group, d), "float32")
                    m = T.sblock_alloc_buffer((group,), "float32")
                    den = T.sblock_alloc_buffer((group,), "float32")
                    alpha = T.sblock_alloc_buffer((group,), "float32")
                    page = T.sblock_alloc_buffer((BLOCK,), "int32")
                    slot_of = T.sblock_alloc_buffer((BLOCK,), "int32")
                    where = T.sblock_alloc_buffer((2,), "int32")
                    head: T.let[T.int32] = p // slots(batch, nnz_pages)
                    slot: T.let[T.int32] = p % slots(batch, nnz_pages)
                    where[0] = batch
                    where[1] = slot
                    for i in T.serial(batch):
                        if where[0] == batch:
                            ranges: T.let[T.int32] = split(i, page_indptr, info, page_size, sliding)
                            if where[1] < ranges:
                                where[0] = i
                            else:
                                where[1] = where[1] - ranges
                    if where[0] < batch:
                        b: T.let[T.int32] = where[0]
                        begin: T.let[T.int32] = T.max(
                            where[1] * SPLIT,
                            first_in_window(sm_scale, q_pos[b], k_pos[b], window),
                        )
                        page_begin: T.let[T.int32] = page_indptr[b]
                        kv_len: T.let[T.int32] = cached_length(
                            page_indptr[b + 1] - page_begin, b, info, page_size, sliding
                        )
                        end: T.let[T.int32] = T.min((where[1] + 1) * SPLIT, kv_len)
                        t.load_q(
                            Q, q, b, head, q_pos[b],
                            rotary_mode, rope_theta, rope_scale, score_scale(sm_scale),
                        )  # fmt: skip
                        for g in T.serial(group):
                            m[g] = T.float32(NO_SCORE)
                            den[g] = T.float32(0)
                            for c in T.serial(d // lanes):
                                for i in T.vectorized(lanes):
                                    out[g, c * lanes + i] = T.float32(0)
                        for block in T.serial(T.ceildiv(T.max(end - begin, 0), BLOCK)):
                            key: T.let[T.int32] = begin + block * BLOCK
                            count: T.let[T.int32] = T.min(BLOCK, end - key)
                            for j in T.serial(count):
                                at_slot: T.let[T.int32] = cached_slot(key + j, b, info, sliding)
                                page[j] = page_values[page_begin + at_slot // page_size]
                                slot_of[j] = at_slot % page_size
                                t.dot(
                                    S, Q, pages, (T.Cast("int64", page[j]), 0, head, slot_of[j]), j,
                                    rotary_mode, k_pos[b] + key + j, rope_theta, rope_scale,
                                )  # fmt: skip
                            t.softmax(S, m, den, alpha, count)
                            t.weigh(out, S, alpha, pages, head, page, slot_of, count)
                        for g in T.serial(group):
                            m_all[head, slot, g] = m[g]
                            den_all[head, slot, g] = den[g]
                            for c in T.serial(d // lanes):
                                for i in T.vectorized(lanes):
                                    out_all[head, slot, g, c * lanes + i] = out[g, c * lanes + i]
            with T.sblock("merge"):
                T.reads()
                T.writes()
                first = T.sblock_alloc_buffer((1,), "int32")
                top = T.sblock_alloc_buffer((1,), "float32")
                total = T.sblock_alloc_buffer((1,), "float32")
                sums = T.sblock_alloc_buffer((d,), "float32")
                first[0] = 0
                for b in T.serial(batch):
                    parts: T.let[T.int32] = split(b, page_indptr, info, page_size, sliding)
                    for head, g in T.grid(h_kv, group):
                        top[0] = T.float32(NO_SCORE)
                        total[0] = T.float32(0)
                        for s in T.serial(parts):
                            top[0] = T.max(top[0], m_all[head, first[0] + s, g])
                        for c in T.serial(d // lanes):
                            for i in T.vectorized(lanes):
                                sums[c * lanes + i] = T.float32(0)
                        for s in T.serial(parts):
                            weight: T.let[T.float32] = exp2(m_all[head, first[0] + s, g] - top[0])
                            total[0] += den_all[head, first[0] + s, g] * weight
                            for c in T.serial(d // lanes):
                                for i in T.vectorized(lanes):
                                    sums[c * lanes + i] += (
                                        out_all[head, first[0] + s, g, c * lanes + i] * weight
                                    )
                        if g < real:
                            for c in T.serial(d // lanes):
                                for i in T.vectorized(lanes):
                                    output[b, head * group + g, c * lanes + i] = T.Cast(
                                        dtype, sums[c * lanes + i] * inverse(total[0])
                                    )
                        lse[b, head * group + g] = T.if_then_else(
                            total[0] > T.float32(0), top[0] + T.log2(total[0]), T.float32(NO_SCORE)
                        )
                        tell(output, lse, b, head * group + g)
                    first[0] = first[0] + parts

    return batch_decode_paged_kv


def split(b: Any, page_indptr: Any, info: Any, page_size: int, sliding: bool) -> Any:
    """Ranges of sequence ``b``."""
    pages = page_indptr[b + 1] - page_indptr[b]
    return T.ceildiv(cached_length(pages, b, info, page_size, sliding), SPLIT)

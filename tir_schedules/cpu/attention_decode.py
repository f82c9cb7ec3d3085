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

from tir_schedules.cpu.attention_keys import Keys
from tir_schedules.cpu.attention_rope import Rotate, rotated
from tir_schedules.cpu.attention_spare import tell_lse, told_heads
from tir_schedules.cpu.attention_tile import (
    MASKED,
    NO_SCORE,
    Heads,
    first_in_window,
    inverse,
    score_scale,
)
from tir_schedules.cpu.kv_pages import cached_length, cached_slot, length_info
from tir_schedules.cpu.vector_math import LOG2_E, exp2, fold, tanh
from tir_schedules.cpu.vector_unit import VectorUnit

SPLIT = 256  # keys of one task


class Step:
    """The statements of one range of keys for the query heads of one KV head."""

    def __init__(
        self, heads: Heads, unit: VectorUnit, rope_scaling: dict[str, Any],
        softcap: float | None, page_size: int,
    ) -> None:  # fmt: skip
        rope = rotated(heads.d_qk, rope_scaling)
        self.load_q = _load_q(heads.group, heads.d_qk, rope)
        self.dot_rotated = _dot_rotated(heads.group, heads.d_qk, page_size, rope)
        self.softmax = _softmax(heads.group, unit.lanes, softcap)
        keys = Keys.of(heads, unit)
        self.dot, self.weigh = keys.dot, keys.weigh


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


def _dot_rotated(group: int, d_qk: int, page_size: int, rope: Rotate) -> Any:
    @T.macro
    def dot_rotated(
        S: T.Buffer, Q: T.Buffer, pages: T.Buffer, places: T.Buffer, head: T.int32, slot: T.int32,
        j: T.int32, pos: T.int32, theta: T.float32, rope_scale: T.float32,
    ) -> None:  # fmt: skip
        """``S[g, j] = sum_d Q[g, d] K[j, d]`` with K rotated as it is read."""
        with T.sblock("dot"):
            T.reads()
            T.writes()
            K = T.sblock_alloc_buffer((d_qk,), "float32")
            # read back, for TVM takes the bounds of a cast to float32 for those of an integer
            position = T.sblock_alloc_buffer((1,), "int32")
            position[0] = pos
            place: T.let[T.int32] = places[head, slot, j]
            for d in T.serial(d_qk):
                K[d] = rope(
                    pages,
                    (T.Cast("int64", place // page_size), 0, head, place % page_size),
                    position[0], d, theta, rope_scale,
                )  # fmt: skip
            for g in T.serial(group):
                S[head, slot, g, j] = T.float32(0)
                for d in T.serial(d_qk):
                    S[head, slot, g, j] += Q[g, d] * K[d]

    return dot_rotated


def _softmax(group: int, lanes: int, softcap: float | None) -> Any:
    cap = (softcap or 1.0) * LOG2_E

    def soften(score: Any) -> Any:
        return score if softcap is None else T.float32(cap) * tanh(score * T.float32(1 / cap))

    @T.macro
    def softmax(
        S: T.Buffer, m: T.Buffer, den: T.Buffer, head: T.int32, slot: T.int32, keys: T.int32
    ) -> None:
        """Scores to weights ``2**(S - m)``, zero past ``keys`` up to a whole vector."""
        for g in T.serial(group):
            with T.sblock("softmax"):
                T.reads()
                T.writes()
                top = T.sblock_alloc_buffer((lanes,), "float32")
                total = T.sblock_alloc_buffer((lanes,), "float32")
                peak = T.sblock_alloc_buffer((1,), "float32")
                for i in T.vectorized(lanes):
                    top[i] = T.float32(NO_SCORE)
                    total[i] = T.float32(0)
                for c in T.serial(T.ceildiv(keys, lanes)):
                    for i in T.vectorized(lanes):
                        S[head, slot, g, c * lanes + i] = T.Select(
                            c * lanes + i < keys,
                            soften(S[head, slot, g, c * lanes + i]),
                            T.float32(MASKED),
                        )
                        top[i] = T.max(top[i], S[head, slot, g, c * lanes + i])
                peak[0] = fold(top[T.ramp(0, 1, lanes)], lanes, T.max)
                for c in T.serial(T.ceildiv(keys, lanes)):
                    for i in T.vectorized(lanes):
                        S[head, slot, g, c * lanes + i] = exp2(
                            S[head, slot, g, c * lanes + i] - peak[0]
                        )
                        total[i] += S[head, slot, g, c * lanes + i]
                m[head, slot, g] = peak[0]
                den[head, slot, g] = fold(total[T.ramp(0, 1, lanes)], lanes, add)

    return softmax


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
    t = Step(heads, unit, rope_scaling, softcap, page_size)
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
            S = T.sblock_alloc_buffer((h_kv, slots(batch, nnz_pages), group, SPLIT), "float32")
            places = T.sblock_alloc_buffer((h_kv, slots(batch, nnz_pages), SPLIT), "int32")
            for p in T.parallel(h_kv * slots(batch, nnz_pages)):
                with T.sblock("range"):
                    T.reads()
                    T.writes()
                    Q = T.sblock_alloc_buffer((group, d), "float32")
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
                        count: T.let[T.int32] = T.max(end - begin, 0)
                        t.load_q(
                            Q, q, b, head, q_pos[b],
                            rotary_mode, rope_theta, rope_scale, score_scale(sm_scale),
                        )  # fmt: skip
                        for j in T.serial(count):
                            at_slot: T.let[T.int32] = cached_slot(begin + j, b, info, sliding)
                            places[head, slot, j] = (
                                page_values[page_begin + at_slot // page_size] * page_size
                                + at_slot % page_size
                            )
                        if rotary_mode == 1:
                            for j in T.serial(count):
                                t.dot_rotated(
                                    S, Q, pages, places, head, slot, j,
                                    k_pos[b] + begin + j, rope_theta, rope_scale,
                                )  # fmt: skip
                        else:
                            t.dot(S, Q, pages, places, [head, slot], count)
                        t.softmax(S, m_all, den_all, head, slot, count)
                        t.weigh(out_all, S, pages, places, [head, slot], count)
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

"""Prefill attention of the paged KV cache: ragged (new keys) and paged (cached keys).

Signatures are those that ``vm.builtin.paged_attention_kv_cache_create`` calls. Work is split into
(KV head, tile of query rows); heads are outermost and tiles of a head run in zigzag order, so that
a contiguous share of the parallel loop has its share of the causal triangle.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_schedules.cpu.attention_tile import (
    Heads,
    Tile,
    first_in_window,
    score_scale,
    zigzag,
)
from tir_schedules.cpu.kv_pages import cached_length, cached_slot, length_info
from tir_schedules.cpu.vector_unit import VectorUnit


def prefill_ragged(
    heads: Heads,
    unit: VectorUnit,
    rope_scaling: dict[str, Any],
    softcap: float | None = None,
    window: int | None = None,
) -> PrimFunc:
    """Attention of new queries over the new keys of the same sequences.

    ``q [n, num_q, d_qk]``, ``k [n', num_kv, d_qk]``, ``v [n', num_kv, d_v]`` in the cache dtype,
    ``output [n, num_q, d_v]``, ``lse [n, num_q]`` float32 in base 2.
    """
    t = Tile(heads, unit, rope_scaling, softcap)
    rows, keys, group, h_q, h_kv = t.rows, t.keys, heads.group, heads.num_q, heads.num_kv
    d_qk, d_v, dtype = heads.d_qk, heads.d_v, heads.dtype

    @T.prim_func(s_tir=True)
    def batch_prefill_ragged_kv(
        var_q: T.handle,
        var_q_indptr: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        var_kv_indptr: T.handle,
        var_q_rope_position: T.handle,
        var_k_rope_pos_offset: T.handle,
        var_output: T.handle,
        var_lse: T.handle,
        causal: T.int32,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        batch = T.int32()
        n_q = T.int32()
        n_kv = T.int32()
        q_indptr_offset = T.int32()
        kv_indptr_offset = T.int32()
        q_pos_offset = T.int32()
        k_pos_offset = T.int32()
        q = T.match_buffer(var_q, (n_q, h_q, d_qk), dtype)
        q_indptr = T.match_buffer(var_q_indptr, (batch + 1,), "int32", elem_offset=q_indptr_offset)
        k = T.match_buffer(var_k, (n_kv, h_kv, d_qk), dtype)
        v = T.match_buffer(var_v, (n_kv, h_kv, d_v), dtype)
        kv_indptr = T.match_buffer(
            var_kv_indptr, (batch + 1,), "int32", elem_offset=kv_indptr_offset
        )
        q_pos = T.match_buffer(var_q_rope_position, (n_q,), "int32", elem_offset=q_pos_offset)
        k_pos = T.match_buffer(var_k_rope_pos_offset, (batch,), "int32", elem_offset=k_pos_offset)
        output = T.match_buffer(var_output, (n_q, h_q, d_v), dtype)
        lse = T.match_buffer(var_lse, (n_q, h_q), "float32")

        for p in T.parallel(h_kv * t.slots(n_q, batch)):
            with T.sblock("tile"):
                T.reads()
                T.writes()
                Q, K, V, S, out, m, den, alpha = t.alloc()
                lo = T.sblock_alloc_buffer((rows,), "int32")
                hi = T.sblock_alloc_buffer((rows,), "int32")
                where = T.sblock_alloc_buffer((2,), "int32")
                slots: T.let[T.int32] = t.slots(n_q, batch)
                head: T.let[T.int32] = p // slots
                t.find(where, q_indptr, batch, zigzag(p % slots, slots))
                if where[0] < batch:
                    b: T.let[T.int32] = where[0]
                    tile: T.let[T.int32] = where[1]
                    q_begin: T.let[T.int32] = q_indptr[b]
                    q_len: T.let[T.int32] = q_indptr[b + 1] - q_begin
                    kv_begin: T.let[T.int32] = kv_indptr[b]
                    kv_len: T.let[T.int32] = kv_indptr[b + 1] - kv_begin
                    past: T.let[T.int32] = T.if_then_else(causal > 0, kv_len - q_len + 1, kv_len)
                    step: T.let[T.int32] = T.if_then_else(causal > 0, 1, 0)
                    first: T.let[T.int32] = tile * rows // group
                    last: T.let[T.int32] = T.min((tile * rows + rows - 1) // group, q_len - 1)
                    t.start(out, m, den)
                    t.load_q(
                        Q, q, q_pos, q_begin, q_len, tile, head,
                        rotary_mode, rope_theta, rope_scale, score_scale(sm_scale),
                    )  # fmt: skip
                    for r in T.serial(rows):
                        row_pos: T.let[T.int32] = T.min((tile * rows + r) // group, q_len - 1)
                        lo[r] = first_in_window(
                            sm_scale, q_pos[q_begin + row_pos], k_pos[b], window
                        )
                        hi[r] = T.min(past + step * ((tile * rows + r) // group), kv_len)
                    end: T.let[T.int32] = T.min(past + step * last, kv_len)
                    start: T.let[T.int32] = first_in_window(
                        sm_scale, q_pos[q_begin + first], k_pos[b], window
                    )
                    latest: T.let[T.int32] = first_in_window(
                        sm_scale, q_pos[q_begin + last], k_pos[b], window
                    )
                    for block in T.serial(T.ceildiv(T.max(end - start, 0), keys)):
                        begin: T.let[T.int32] = start + block * keys
                        count: T.let[T.int32] = T.min(keys, end - begin)
                        for j in T.serial(count):
                            row: T.let[T.int32] = kv_begin + begin + j
                            t.load_k(K, j, k, (row, head))
                            t.load_v(V, j, v, (row, head))
                            if rotary_mode == 1:
                                t.rotate_k(
                                    K, j, k, (row, head),
                                    k_pos[b] + begin + j, rope_theta, rope_scale,
                                )  # fmt: skip
                        t.dot(K, Q, S, count)
                        t.soften(S, count)
                        if T.Or(begin + keys > past + step * first, begin < latest):
                            t.mask(S, lo, hi, begin, count)
                        t.softmax(S, m, den, alpha, count)
                        t.weigh(V, S, out, alpha, count)
                    t.store(output, lse, out, m, den, q_begin, q_len, tile, head)

    return batch_prefill_ragged_kv


def prefill_paged(
    heads: Heads,
    unit: VectorUnit,
    rope_scaling: dict[str, Any],
    softcap: float | None = None,
    layer_window: int | None = None,
    page_size: int = 16,
    window: int | None = None,
) -> PrimFunc:
    """Attention of new queries over cached keys.

    ``q, output [n, num_q, d]``, ``pages [num_pages, 2, num_kv, page_size, d]``, ``lse [n, num_q]``
    float32 in base 2. With ``causal`` the last query sees all keys, unless ``layer_window`` (of the
    cache's layer kind ``mha_sliding``) is given: then query ``i`` sees the last
    ``layer_window - i - 1`` keys. ``window``: see ``first_in_window``.
    """
    t = Tile(heads, unit, rope_scaling, softcap)
    rows, keys, group, h_q, h_kv = t.rows, t.keys, heads.group, heads.num_q, heads.num_kv
    d, dtype, sliding = heads.d_qk, heads.dtype, layer_window is not None
    layer = layer_window or 0

    @T.prim_func(s_tir=True)
    def batch_prefill_paged_kv(
        var_q: T.handle,
        var_q_indptr: T.handle,
        var_pages: T.handle,
        var_page_indptr: T.handle,
        var_page_values: T.handle,
        var_length_info: T.handle,
        var_k_rope_pos_offset: T.handle,
        var_q_rope_position: T.handle,
        var_output: T.handle,
        var_lse: T.handle,
        causal: T.int32,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        batch = T.int32()
        n_q = T.int32()
        nnz_pages = T.int32()
        num_pages = T.int64()
        pages_offset = T.int64()
        q_indptr_offset = T.int32()
        page_indptr_offset = T.int32()
        page_values_offset = T.int32()
        k_pos_offset = T.int32()
        q_pos_offset = T.int32()
        info_offset = T.int32()
        q = T.match_buffer(var_q, (n_q, h_q, d), dtype)
        q_indptr = T.match_buffer(var_q_indptr, (batch + 1,), "int32", elem_offset=q_indptr_offset)
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
        q_pos = T.match_buffer(var_q_rope_position, (n_q,), "int32", elem_offset=q_pos_offset)
        output = T.match_buffer(var_output, (n_q, h_q, d), dtype)
        lse = T.match_buffer(var_lse, (n_q, h_q), "float32")

        for p in T.parallel(h_kv * t.slots(n_q, batch)):
            with T.sblock("tile"):
                T.reads()
                T.writes()
                Q, K, V, S, out, m, den, alpha = t.alloc()
                lo = T.sblock_alloc_buffer((rows,), "int32")
                hi = T.sblock_alloc_buffer((rows,), "int32")
                where = T.sblock_alloc_buffer((2,), "int32")
                slots: T.let[T.int32] = t.slots(n_q, batch)
                head: T.let[T.int32] = p // slots
                t.find(where, q_indptr, batch, zigzag(p % slots, slots))
                if where[0] < batch:
                    b: T.let[T.int32] = where[0]
                    tile: T.let[T.int32] = where[1]
                    q_begin: T.let[T.int32] = q_indptr[b]
                    q_len: T.let[T.int32] = q_indptr[b + 1] - q_begin
                    page_begin: T.let[T.int32] = page_indptr[b]
                    kv_len: T.let[T.int32] = cached_length(
                        page_indptr[b + 1] - page_begin, b, info, page_size, sliding
                    )
                    first: T.let[T.int32] = tile * rows // group
                    last: T.let[T.int32] = T.min((tile * rows + rows - 1) // group, q_len - 1)
                    t.start(out, m, den)
                    t.load_q(
                        Q, q, q_pos, q_begin, q_len, tile, head,
                        rotary_mode, rope_theta, rope_scale, score_scale(sm_scale),
                    )  # fmt: skip
                    for r in T.serial(rows):
                        pos: T.let[T.int32] = T.min((tile * rows + r) // group, q_len - 1)
                        lo[r] = T.max(
                            first_visible(causal, pos, kv_len, layer),
                            first_in_window(sm_scale, q_pos[q_begin + pos], k_pos[b], window),
                        )
                        hi[r] = last_visible(causal, pos, q_len, kv_len, layer)
                    begin: T.let[T.int32] = T.max(
                        first_visible(causal, first, kv_len, layer),
                        first_in_window(sm_scale, q_pos[q_begin + first], k_pos[b], window),
                    )
                    end: T.let[T.int32] = last_visible(causal, last, q_len, kv_len, layer)
                    latest: T.let[T.int32] = first_in_window(
                        sm_scale, q_pos[q_begin + last], k_pos[b], window
                    )
                    for block in T.serial(T.ceildiv(T.max(end - begin, 0), keys)):
                        key: T.let[T.int32] = begin + block * keys
                        count: T.let[T.int32] = T.min(keys, end - key)
                        for j in T.serial(count):
                            slot: T.let[T.int32] = cached_slot(key + j, b, info, sliding)
                            page: T.let[T.int64] = T.Cast(
                                "int64", page_values[page_begin + slot // page_size]
                            )
                            t.load_k(K, j, pages, (page, 0, head, slot % page_size))
                            t.load_v(V, j, pages, (page, 1, head, slot % page_size))
                            if rotary_mode == 1:
                                t.rotate_k(
                                    K, j, pages, (page, 0, head, slot % page_size),
                                    k_pos[b] + key + j, rope_theta, rope_scale,
                                )  # fmt: skip
                        t.dot(K, Q, S, count)
                        t.soften(S, count)
                        if T.Or(causal > 0, key < latest):
                            t.mask(S, lo, hi, key, count)
                        t.softmax(S, m, den, alpha, count)
                        t.weigh(V, S, out, alpha, count)
                    t.store(output, lse, out, m, den, q_begin, q_len, tile, head)

    return batch_prefill_paged_kv


def first_visible(causal: Any, pos: Any, kv_len: Any, layer: int) -> Any:
    """The first cached key that query ``pos`` sees: 0, or its layer's sliding window."""
    if not layer:
        return T.int32(0)
    past = T.max(layer - pos - 1, 0)
    return T.if_then_else(causal > 0, T.max(kv_len - past, 0), 0)


def last_visible(causal: Any, pos: Any, q_len: Any, kv_len: Any, layer: int) -> Any:
    """One past the last cached key that query ``pos`` sees."""
    if layer:
        return kv_len
    return T.if_then_else(causal > 0, T.min(kv_len - q_len + pos + 1, kv_len), kv_len)

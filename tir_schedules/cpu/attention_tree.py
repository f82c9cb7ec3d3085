"""Attention of token trees (speculative decoding): the causal mask follows the tree.

A sequence's last ``t`` keys form a tree whose nodes carry ``tree_order [t, 2] = (enter, leave)`` of
a depth-first walk. Node ``i`` sees all keys before the tree, and node ``j`` of the tree when ``j``
is ``i`` or an ancestor: ``enter[j] <= enter[i] < leave[j]``. The queries are the last nodes.

Both kernels are the tile of ``attention_tile`` with this mask; see there and in
``attention_prefill`` for shapes. Inline rotary embedding of cached keys is not defined for trees.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_schedules.cpu.attention_tile import MASKED, Heads, Tile, first_in_window, score_scale
from tir_schedules.cpu.kv_pages import cached_length
from tir_schedules.cpu.vector_unit import VectorUnit


def _mask(group: int, rows: int) -> Any:
    @T.macro
    def mask(
        S: T.Buffer, order: T.Buffer, begin: T.int32, nodes: T.int32,
        q_len: T.int32, kv_len: T.int32, tile: T.int32, first: T.int32, keys: T.int32,
    ) -> None:  # fmt: skip
        """Mask the scores of keys ``first + j`` that a row's node does not see."""
        for j in T.serial(keys):
            if first + j >= kv_len - nodes:
                key: T.let[T.int32] = begin + first + j - (kv_len - nodes)
                for r in T.serial(T.min(rows, q_len * group - tile * rows)):
                    node: T.let[T.int32] = begin + nodes - q_len + (tile * rows + r) // group
                    if T.Or(order[node, 0] < order[key, 0], order[node, 0] >= order[key, 1]):
                        S[j, r] = T.float32(MASKED)

    return mask


def _leave_window(group: int, rows: int, window: int | None) -> Any:
    @T.macro
    def leave(
        S: T.Buffer, q_pos: T.Buffer, offset: T.int32, q_begin: T.int32, q_len: T.int32,
        sm_scale: T.float32, tile: T.int32, first: T.int32, keys: T.int32,
    ) -> None:  # fmt: skip
        """Mask the keys before the window of a local layer (see ``first_in_window``)."""
        for r in T.serial(T.min(rows, q_len * group - tile * rows)):
            pos: T.let[T.int32] = q_pos[q_begin + (tile * rows + r) // group]
            begin: T.let[T.int32] = first_in_window(sm_scale, pos, offset, window)
            for j in T.serial(T.min(keys, begin - first)):
                S[j, r] = T.float32(MASKED)

    return leave


def tree_ragged(
    heads: Heads, unit: VectorUnit, rope_scaling: dict[str, Any], softcap: float | None = None
) -> PrimFunc:
    """New queries over the new keys of the same trees; ``mask`` is the tree order."""
    t = Tile(heads, unit, rope_scaling, softcap)
    mask = _mask(heads.group, t.rows)
    keys, h_q, h_kv, dtype = t.keys, heads.num_q, heads.num_kv, heads.dtype
    d = heads.d_qk

    @T.prim_func(s_tir=True)
    def batch_tree_attn(
        var_q: T.handle,
        var_q_indptr: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        var_kv_indptr: T.handle,
        var_q_rope_position: T.handle,
        var_mn_indptr: T.handle,
        var_mask: T.handle,
        var_output: T.handle,
        var_lse: T.handle,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        bounds = T.int32()
        n_q = T.int32()
        n_kv = T.int32()
        nodes_all = T.int32()
        q_indptr_offset = T.int32()
        kv_indptr_offset = T.int32()
        q_pos_offset = T.int32()
        order_indptr_offset = T.int32()
        order_offset = T.int32()
        q = T.match_buffer(var_q, (n_q, h_q, d), dtype)
        q_indptr = T.match_buffer(var_q_indptr, (bounds,), "int32", elem_offset=q_indptr_offset)
        k = T.match_buffer(var_k, (n_kv, h_kv, d), dtype)
        v = T.match_buffer(var_v, (n_kv, h_kv, d), dtype)
        kv_indptr = T.match_buffer(var_kv_indptr, (bounds,), "int32", elem_offset=kv_indptr_offset)
        q_pos = T.match_buffer(var_q_rope_position, (n_q,), "int32", elem_offset=q_pos_offset)
        order_indptr = T.match_buffer(
            var_mn_indptr, (bounds,), "int32", elem_offset=order_indptr_offset
        )
        order = T.match_buffer(var_mask, (nodes_all, 2), "int32", elem_offset=order_offset)
        output = T.match_buffer(var_output, (n_q, h_q, d), dtype)
        lse = T.match_buffer(var_lse, (n_q, h_q), "float32")

        for p in T.parallel(h_kv * t.slots(n_q, bounds - 1)):
            with T.sblock("tile"):
                T.reads()
                T.writes()
                Q, K, V, S, out, m, den, alpha = t.alloc()
                where = T.sblock_alloc_buffer((2,), "int32")
                slots: T.let[T.int32] = t.slots(n_q, bounds - 1)
                head: T.let[T.int32] = p // slots
                t.find(where, q_indptr, bounds - 1, p % slots)
                if where[0] < bounds - 1:
                    b: T.let[T.int32] = where[0]
                    tile: T.let[T.int32] = where[1]
                    q_begin: T.let[T.int32] = q_indptr[b]
                    q_len: T.let[T.int32] = q_indptr[b + 1] - q_begin
                    kv_begin: T.let[T.int32] = kv_indptr[b]
                    kv_len: T.let[T.int32] = kv_indptr[b + 1] - kv_begin
                    nodes: T.let[T.int32] = order_indptr[b + 1] - order_indptr[b]
                    t.start(out, m, den)
                    t.load_q(
                        Q, q, q_pos, q_begin, q_len, tile, head,
                        rotary_mode, rope_theta, rope_scale, score_scale(sm_scale),
                    )  # fmt: skip
                    for block in T.serial(T.ceildiv(kv_len, keys)):
                        key: T.let[T.int32] = block * keys
                        count: T.let[T.int32] = T.min(keys, kv_len - key)
                        for j in T.serial(count):
                            row: T.let[T.int32] = kv_begin + key + j
                            t.load_k(K, j, k, (row, head))
                            t.load_v(V, j, v, (row, head))
                            if rotary_mode == 1:
                                t.rotate_k(K, j, k, (row, head), q_pos[row], rope_theta, rope_scale)
                        t.dot(K, Q, S, count)
                        t.soften(S, count)
                        mask(S, order, order_indptr[b], nodes, q_len, kv_len, tile, key, count)
                        t.softmax(S, m, den, alpha, count)
                        t.weigh(V, S, out, alpha, count)
                    t.store(output, lse, out, m, den, q_begin, q_len, tile, head)

    return batch_tree_attn


def tree_paged(
    heads: Heads,
    unit: VectorUnit,
    rope_scaling: dict[str, Any],
    softcap: float | None = None,
    page_size: int = 16,
    window: int | None = None,
) -> PrimFunc:
    """New queries over cached keys, the last of which are the trees (already appended)."""
    t = Tile(heads, unit, rope_scaling, softcap)
    mask = _mask(heads.group, t.rows)
    leave = _leave_window(heads.group, t.rows, window)
    keys, h_q, h_kv, dtype = t.keys, heads.num_q, heads.num_kv, heads.dtype
    d = heads.d_qk

    @T.prim_func(s_tir=True)
    def tree_attn_paged_kv(
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
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
        var_tree_order_indptr: T.handle,
        var_tree_order: T.handle,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        batch = T.int32()
        n_q = T.int32()
        nnz_pages = T.int32()
        nodes_all = T.int32()
        num_pages = T.int64()
        pages_offset = T.int64()
        q_indptr_offset = T.int32()
        page_indptr_offset = T.int32()
        page_values_offset = T.int32()
        k_pos_offset = T.int32()
        q_pos_offset = T.int32()
        info_offset = T.int32()
        order_indptr_offset = T.int32()
        order_offset = T.int32()
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
        info = T.match_buffer(var_length_info, (batch,), "int32", elem_offset=info_offset)
        k_pos = T.match_buffer(var_k_rope_pos_offset, (batch,), "int32", elem_offset=k_pos_offset)
        q_pos = T.match_buffer(var_q_rope_position, (n_q,), "int32", elem_offset=q_pos_offset)
        output = T.match_buffer(var_output, (n_q, h_q, d), dtype)
        lse = T.match_buffer(var_lse, (n_q, h_q), "float32")
        order_indptr = T.match_buffer(
            var_tree_order_indptr, (batch + 1,), "int32", elem_offset=order_indptr_offset
        )
        order = T.match_buffer(var_tree_order, (nodes_all, 2), "int32", elem_offset=order_offset)

        for p in T.parallel(h_kv * t.slots(n_q, batch)):
            with T.sblock("tile"):
                T.reads()
                T.writes()
                Q, K, V, S, out, m, den, alpha = t.alloc()
                where = T.sblock_alloc_buffer((2,), "int32")
                slots: T.let[T.int32] = t.slots(n_q, batch)
                head: T.let[T.int32] = p // slots
                t.find(where, q_indptr, batch, p % slots)
                if where[0] < batch:
                    b: T.let[T.int32] = where[0]
                    tile: T.let[T.int32] = where[1]
                    q_begin: T.let[T.int32] = q_indptr[b]
                    q_len: T.let[T.int32] = q_indptr[b + 1] - q_begin
                    page_begin: T.let[T.int32] = page_indptr[b]
                    kv_len: T.let[T.int32] = cached_length(
                        page_indptr[b + 1] - page_begin, b, info, page_size, False
                    )
                    nodes: T.let[T.int32] = order_indptr[b + 1] - order_indptr[b]
                    t.start(out, m, den)
                    t.load_q(
                        Q, q, q_pos, q_begin, q_len, tile, head,
                        rotary_mode, rope_theta, rope_scale, score_scale(sm_scale),
                    )  # fmt: skip
                    for block in T.serial(T.ceildiv(kv_len, keys)):
                        key: T.let[T.int32] = block * keys
                        count: T.let[T.int32] = T.min(keys, kv_len - key)
                        for j in T.serial(count):
                            page: T.let[T.int64] = T.Cast(
                                "int64", page_values[page_begin + (key + j) // page_size]
                            )
                            t.load_k(K, j, pages, (page, 0, head, (key + j) % page_size))
                            t.load_v(V, j, pages, (page, 1, head, (key + j) % page_size))
                            if rotary_mode == 1:
                                t.rotate_k(
                                    K, j, pages, (page, 0, head, (key + j) % page_size),
                                    k_pos[b] + key + j, rope_theta, rope_scale,
                                )  # fmt: skip
                        t.dot(K, Q, S, count)
                        t.soften(S, count)
                        mask(S, order, order_indptr[b], nodes, q_len, kv_len, tile, key, count)
                        if window is not None:
                            leave(S, q_pos, k_pos[b], q_begin, q_len, sm_scale, tile, key, count)
                        t.softmax(S, m, den, alpha, count)
                        t.weigh(V, S, out, alpha, count)
                    t.store(output, lse, out, m, den, q_begin, q_len, tile, head)

    return tree_attn_paged_kv

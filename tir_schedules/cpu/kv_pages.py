"""The paged KV cache's storage: where a cached position lies, and kernels that move pages.

``pages [num_pages, 2, num_kv, page_size, head_dim]`` holds K (0) and V (1) of one layer. A sequence
is a list of pages, ``page_values[page_indptr[b] : page_indptr[b + 1]]``. ``length_info`` says how
much of it counts: ``[b]`` is the number of slots used in the last page; with a sliding window
``[3, b]`` is (used slots of the last page, first position of the window, attention sink length) and
the visible positions are the sink's followed by the window's.
"""

from __future__ import annotations

import math
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

# Below this many tokens waking the other cores costs more than it saves.
PARALLEL_FROM = 64


def length_info(var: Any, batch: Any, sliding: bool, offset: Any) -> Any:
    """Declare the ``length_info`` buffer of a kernel argument."""
    shape = (3, batch) if sliding else (batch,)
    return T.match_buffer(var, shape, "int32", elem_offset=offset)


def cached_length(pages: Any, b: Any, info: Any, page_size: int, sliding: bool) -> Any:
    """Visible cached positions of sequence ``b``, which owns ``pages`` pages."""
    if sliding:
        length = (pages - 1) * page_size + info[0, b] - info[1, b] + info[2, b]
    else:
        length = (pages - 1) * page_size + info[b]
    return T.if_then_else(pages > 0, length, 0)


def cached_slot(index: Any, b: Any, info: Any, sliding: bool) -> Any:
    """The slot of the ``index``-th visible position of sequence ``b``."""
    if not sliding:
        return index
    return T.if_then_else(index < info[2, b], index, index - info[2, b] + info[1, b])


def _put(num_kv: int, head_dim: int, page_size: int) -> Any:
    lanes = math.gcd(64, head_dim)

    @T.macro
    def put(
        pages: T.Buffer, k_data: T.Buffer, v_data: T.Buffer, position_map: T.Buffer, i: T.int64
    ) -> None:
        with T.sblock("append"):
            T.reads()
            T.writes()
            if position_map[i] >= 0:
                page: T.let[T.int64] = T.Cast("int64", position_map[i] // page_size)
                slot: T.let[T.int64] = T.Cast("int64", position_map[i] % page_size)
                for h in T.serial(num_kv):
                    for c in T.serial(head_dim // lanes):
                        for d in T.vectorized(lanes):
                            pages[page, 0, h, slot, c * lanes + d] = k_data[i, h, c * lanes + d]
                        for d in T.vectorized(lanes):
                            pages[page, 1, h, slot, c * lanes + d] = v_data[i, h, c * lanes + d]

    return put


def kv_append(num_kv: int, head_dim: int, dtype: str, page_size: int = 16) -> PrimFunc:
    """Write ``k_data, v_data [n, num_kv, head_dim]`` to slots ``position_map [n]`` (-1: none)."""
    put = _put(num_kv, head_dim, page_size)

    @T.prim_func(s_tir=True)
    def kv_cache_transpose_append(
        var_pages: T.handle,
        var_k_data: T.handle,
        var_v_data: T.handle,
        var_position_map: T.handle,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        n = T.int64()
        num_pages = T.int64()
        pages_offset = T.int64()
        map_offset = T.int32()
        pages = T.match_buffer(
            var_pages, (num_pages, 2, num_kv, page_size, head_dim), dtype, elem_offset=pages_offset
        )
        k_data = T.match_buffer(var_k_data, (n, num_kv, head_dim), dtype)
        v_data = T.match_buffer(var_v_data, (n, num_kv, head_dim), dtype)
        position_map = T.match_buffer(var_position_map, (n,), "int32", elem_offset=map_offset)
        if n < PARALLEL_FROM:
            for i in T.serial(n):
                put(pages, k_data, v_data, position_map, i)
        else:
            for i in T.parallel(n):
                put(pages, k_data, v_data, position_map, i)

    return kv_cache_transpose_append


def copy_page(num_kv: int, head_dim: int, dtype: str, page_size: int = 16) -> PrimFunc:
    """Copy the first ``copy_length`` slots of page ``src`` to page ``tgt`` (a forked sequence)."""
    lanes = math.gcd(64, head_dim)

    @T.prim_func(s_tir=True)
    def copy_single_page(
        var_pages: T.handle, src_page_id: T.int64, tgt_page_id: T.int64, copy_length: T.int64
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True})
        num_pages = T.int64()
        pages_offset = T.int64()
        pages = T.match_buffer(
            var_pages, (num_pages, 2, num_kv, page_size, head_dim), dtype, elem_offset=pages_offset
        )
        for half, h, slot, c in T.grid(2, num_kv, copy_length, head_dim // lanes):
            with T.sblock("copy"):
                T.reads()
                T.writes()
                for d in T.vectorized(lanes):
                    pages[tgt_page_id, half, h, slot, c * lanes + d] = pages[
                        src_page_id, half, h, slot, c * lanes + d
                    ]

    return copy_single_page


def compact_kv(num_kv: int, head_dim: int, dtype: str, page_size: int = 16) -> PrimFunc:
    """Move slots ``copy_src_dst_pos[0, i]`` to ``[1, i]`` in order, sequence after sequence."""
    lanes = math.gcd(64, head_dim)

    @T.prim_func(s_tir=True)
    def compact_kv_copy(
        var_pages: T.handle,
        var_copy_length_indptr: T.handle,
        var_copy_src_dst_pos: T.handle,
        batch_size: T.int32,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True})
        num_pages = T.int64()
        total = T.int32()
        pages_offset = T.int64()
        indptr_offset = T.int32()
        moves_offset = T.int32()
        pages = T.match_buffer(
            var_pages, (num_pages, 2, num_kv, page_size, head_dim), dtype, elem_offset=pages_offset
        )
        indptr = T.match_buffer(
            var_copy_length_indptr, (batch_size + 1,), "int32", elem_offset=indptr_offset
        )
        moves = T.match_buffer(var_copy_src_dst_pos, (2, total), "int32", elem_offset=moves_offset)
        for i in T.serial(indptr[batch_size]):
            with T.sblock("move"):
                T.reads()
                T.writes()
                src: T.let[T.int32] = moves[0, i]
                dst: T.let[T.int32] = moves[1, i]
                for half, h, c in T.grid(2, num_kv, head_dim // lanes):
                    for d in T.vectorized(lanes):
                        pages[
                            T.Cast("int64", dst // page_size),
                            half,
                            h,
                            dst % page_size,
                            c * lanes + d,
                        ] = pages[
                            T.Cast("int64", src // page_size),
                            half,
                            h,
                            src % page_size,
                            c * lanes + d,
                        ]

    return compact_kv_copy


def debug_get_kv(num_layers: int, num_kv: int, head_dim: int, dtype: str) -> PrimFunc:
    """Read cached K and V of one layer at ``position_map`` into ``[num_layers, n, num_kv, d]``."""
    lanes = math.gcd(64, head_dim)

    @T.prim_func(s_tir=True)
    def kv_cache_debug_get_kv(
        var_pages: T.handle,
        var_position_map: T.handle,
        var_k_data: T.handle,
        var_v_data: T.handle,
        layer_id: T.int64,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        n = T.int64()
        page_size = T.int64()
        num_pages = T.int64()
        pages_offset = T.int64()
        map_offset = T.int64()
        pages = T.match_buffer(
            var_pages, (num_pages, 2, num_kv, page_size, head_dim), dtype, elem_offset=pages_offset
        )
        position_map = T.match_buffer(var_position_map, (n,), "int32", elem_offset=map_offset)
        k_data = T.match_buffer(var_k_data, (num_layers, n, num_kv, head_dim), dtype)
        v_data = T.match_buffer(var_v_data, (num_layers, n, num_kv, head_dim), dtype)
        for i, h, c in T.grid(n, num_kv, head_dim // lanes):
            with T.sblock("get"):
                T.reads()
                T.writes()
                page: T.let[T.int64] = T.Cast("int64", position_map[i]) // page_size
                slot: T.let[T.int64] = T.Cast("int64", position_map[i]) % page_size
                for d in T.vectorized(lanes):
                    k_data[layer_id, i, h, c * lanes + d] = pages[page, 0, h, slot, c * lanes + d]
                for d in T.vectorized(lanes):
                    v_data[layer_id, i, h, c * lanes + d] = pages[page, 1, h, slot, c * lanes + d]

    return kv_cache_debug_get_kv

"""The compiled functions that TVM's paged KV cache calls, for a CPU.

``vm.builtin.paged_attention_kv_cache_create`` takes them as arguments; ``cpu_kv_cache_functions``
builds all of them for one model. TVM's own CPU versions are serial scalar loops with float16
arithmetic; these have the same signatures and meaning, run on all cores and vector lanes, keep
float32 in registers and the cache in its dtype (float32, float16 or bfloat16).

Parsing them takes seconds and many models ask for the same, so they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

from tvm.target import Target
from tvm.tirx import PrimFunc

from tir_schedules.cpu.attention_decode import decode_paged
from tir_schedules.cpu.attention_prefill import prefill_paged, prefill_ragged
from tir_schedules.cpu.attention_tile import Heads
from tir_schedules.cpu.attention_tree import tree_paged, tree_ragged
from tir_schedules.cpu.kv_pages import compact_kv, copy_page, debug_get_kv, kv_append
from tir_schedules.cpu.merge_state import merge_state
from tir_schedules.cpu.rope import split_rotary
from tir_schedules.cpu.vector_unit import VectorUnit


@lru_cache(256)
def _kept(maker: Callable[..., PrimFunc], *args: Hashable) -> PrimFunc:
    return maker(*args)


class Scaling(dict[str, Any]):
    """A rotary embedding's scaling block, as part of the key of what was made."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def cpu_kv_cache_functions(
    *,
    num_layers: int,
    num_q: int,
    num_kv: int,
    qk_head_dim: int,
    v_head_dim: int,
    dtype: str,
    rope_theta: float,
    rope_scale: float,
    rope_scaling: dict[str, Any] | None,
    rotary_dim: int,
    target: Target | None,
    page_size: int = 16,
    layer_sliding_window: int = 1024,
    softcap: float | None = None,
    window: int | None = None,
    spare: bool = False,
) -> dict[str, PrimFunc]:
    """Name -> function, in the order in which the constructor takes them.

    ``softcap`` caps the attention scores (gemma2); ``layer_sliding_window`` is the window of the
    layers of the cache's kind ``mha_sliding``. With ``window`` a layer may also ask for a window of
    its own by a negative softmax scale (``attention_tile.first_in_window``); ``spare``: ``Heads``.
    """
    heads = Heads(num_q, num_kv, qk_head_dim, v_head_dim, dtype, spare)
    scaling, unit = Scaling(rope_scaling or {}), VectorUnit.of(target)
    return {
        "kv_cache_transpose_append": _kept(kv_append, num_kv, qk_head_dim, dtype, page_size),
        "attention_prefill_ragged": _kept(prefill_ragged, heads, unit, scaling, softcap, window),
        "attention_prefill": _kept(
            prefill_paged, heads, unit, scaling, softcap, None, page_size, window
        ),
        "attention_decode": _kept(
            decode_paged, heads, unit, scaling, softcap, False, page_size, window
        ),
        "attention_prefill_sliding_window": _kept(
            prefill_paged, heads, unit, scaling, softcap, layer_sliding_window, page_size
        ),
        "attention_decode_sliding_window": _kept(
            decode_paged, heads, unit, scaling, softcap, True, page_size
        ),
        "attention_prefill_with_tree_mask_paged": _kept(
            tree_paged, heads, unit, scaling, softcap, page_size, window
        ),
        "attention_prefill_with_tree_mask": _kept(tree_ragged, heads, unit, scaling, softcap),
        "attention_merge_state": _kept(merge_state, heads, unit),
        "split_rotary": _kept(
            split_rotary,
            num_q,
            num_kv,
            qk_head_dim,
            dtype,
            unit,
            rope_theta,
            rope_scale,
            scaling,
            rotary_dim,
        ),
        "copy_single_page": _kept(copy_page, num_kv, qk_head_dim, dtype, page_size),
        "debug_get_kv": _kept(debug_get_kv, num_layers, num_kv, qk_head_dim, dtype),
        "compact_kv_copy": _kept(compact_kv, num_kv, qk_head_dim, dtype, page_size),
    }

"""The compiled functions that TVM's paged KV cache calls, for a GPU.

Ours where 16-bit tensor cores are (sm_80 and newer, see `Heads.fit`), for window and cap; TVM's own
for the rest, which know neither. What moves rows and pages is TVM's own everywhere.
"""

from __future__ import annotations

from typing import Any

from tvm.relax.frontend.nn.llm import kv_cache as tvm_kernels
from tvm.target import Target
from tvm.tirx import PrimFunc

from . import choices
from .attention_decode import USUAL, Plan, decode
from .attention_function import Heads
from .attention_merge import merge_state
from .attention_prefill import prefill_paged, prefill_ragged, tree_paged, tree_ragged
from .warp import compute_capability

__all__ = ["Heads", "gpu_kv_cache_functions", "has_attention"]


def has_attention(heads: Heads, target: Target) -> bool:
    """True where our kernels compute it."""
    return target.kind.name == "cuda" and compute_capability(target) >= 80 and heads.fit()


def gpu_kv_cache_functions(
    heads: Heads,
    target: Target,
    *,
    num_layers: int,
    rope_theta: float,
    rope_scale: float,
    rope_scaling: dict[str, Any],
    rotary_dim: int,
) -> dict[str, PrimFunc]:
    """Name -> function, in the order in which the constructor takes them.

    Raises ValueError for a window, a cap or spare heads where `has_attention` says no.
    """
    k, h, kv, d, dtype = tvm_kernels, heads.num_q, heads.num_kv, heads.d, heads.dtype
    ours = has_attention(heads, target)
    if not ours and (heads.window is not None or heads.cap is not None or heads.spare):
        raise ValueError(f"no kernels for a window, a cap or spare heads: {heads}")
    attention = _ours(heads) if ours else _tvms(heads, rope_scaling, target)
    return {
        "append": k._kv_cache_transpose_append(kv, d, dtype),
        **attention,
        "merge_state": (
            merge_state(heads)
            if heads.spare
            else k._merge_state_inplace(h, d, dtype, target, "merge_state")
        ),
        "split_rotary": k.llama_rope_with_position_map(
            rope_theta, rope_scale, d, h, kv, dtype, rope_scaling, rotary_dim
        ),
        "copy_page": k._copy_single_page(kv, heads.page, d, dtype, target),
        "debug_get_kv": k._kv_cache_debug_get_kv(num_layers, kv, d, dtype),
        "compact": k._compact_kv_copy(kv, d, dtype, target),
    }


def _ours(heads: Heads) -> dict[str, PrimFunc]:
    chosen = choices.measured("decode").get(choices.attention(heads))
    plan = Plan(**chosen) if chosen else USUAL
    return {
        "prefill_ragged": prefill_ragged(heads),
        "prefill": prefill_paged(heads),
        "decode": decode(heads, plan=plan),
        "prefill_sliding": prefill_paged(heads, sliding=True),
        "decode_sliding": decode(heads, sliding=True, plan=plan),
        "prefill_tree_paged": tree_paged(heads),
        "prefill_tree": tree_ragged(heads),
    }


def _tvms(heads: Heads, scaling: dict[str, Any], target: Target) -> dict[str, PrimFunc]:
    k, h, kv, d, dtype = tvm_kernels, heads.num_q, heads.num_kv, heads.d, heads.dtype
    last = (scaling, target)
    return {
        "prefill_ragged": k._attention_prefill_ragged(kv, h, d, d, dtype, *last),
        "prefill": k._attention_prefill(kv, h, d, dtype, False, *last),
        "decode": k._attention_decode(kv, h, d, dtype, False, *last),
        "prefill_sliding": k._attention_prefill(kv, h, d, dtype, True, *last),
        "decode_sliding": k._attention_decode(kv, h, d, dtype, True, *last),
        "prefill_tree_paged": k.tree_attn_with_paged_kv_cache(kv, h, d, dtype, *last),
        "prefill_tree": k.tree_attn(kv, h, d, dtype, *last),
    }

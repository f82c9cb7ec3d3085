"""``create_tir_paged_kv_cache``: the runtime's paged cache, told which kernels to run.

    (max_batch), (max_total_length), (prefill_chunk), (page_size), (sliding 0|1) -> cache

The cache object lives in TVM's runtime; this function hands it the model's sizes and one PrimFunc
per task (append, rope, attention over pages or over the chunk, merge, copy). Five numbers describe
its size: runtimes before August 2026, which released MLC engines carry, refuse the sixth that newer
front ends write, and newer runtimes take both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.frontend.nn.llm import kv_cache as tvm_kernels
from tvm.target import Target

MHA, MHA_SLIDING = 0, 3
ROPE_NORMAL = 1


@dataclass(frozen=True)
class CacheLayout:
    """What the cache must know of a model; ``sliding`` names the layers with local attention."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    rope_theta: float
    rope_scale: float = 1.0
    rope_scaling: dict[str, Any] | None = None
    rotary_dim: int | None = None

    def metadata(self) -> dict[str, int]:
        """The ``kv_cache`` block of ``_metadata``."""
        return {
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }


def attach_cache(mod: tvm.IRModule, layout: CacheLayout, target: Target) -> tvm.IRModule:
    """``mod`` with the function that creates the cache, and all of its kernels."""
    builder = relax.BlockBuilder(mod)
    sizes = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "sliding")
    size = {name: tirx.Var(name, "int64") for name in sizes}
    params = [relax.Var(f"{name}_", relax.ShapeType([var])) for name, var in size.items()]

    def kernel(func: tirx.PrimFunc, name: str) -> Any:
        return builder.add_func(func, name)

    def task(func: tirx.PrimFunc, name: str) -> Any:
        return relax.Tuple([tvm.ir.StringImm("tirx"), kernel(func, name)])

    kernels = _cpu_kernels if target.kind.name == "llvm" else _gpu_kernels
    with builder.function("create_tir_paged_kv_cache", params=params):
        call = relax.call_pure_packed(
            "vm.builtin.paged_attention_kv_cache_create",
            relax.ShapeExpr(list(size.values())),
            *_sizes(layout),
            *kernels(layout, size["page_size"], target, kernel, task),
            ty_args=relax.AnyType(),
        )
        builder.emit_func_output(builder.emit(call))
    return builder.finalize()


def _sizes(layout: CacheLayout) -> list[Any]:
    return [
        relax.ShapeExpr([0, layout.layers]),
        relax.prim_value(layout.heads),
        relax.prim_value(layout.kv_heads),
        relax.prim_value(layout.head_dim),
        relax.prim_value(layout.head_dim),
        relax.ShapeExpr([MHA] * layout.layers),
        relax.prim_value(False),
        relax.prim_value(ROPE_NORMAL),
        relax.prim_value(layout.rope_scale),
        relax.prim_value(layout.rope_theta),
        relax.prim_value(0),
        relax.op.zeros((), layout.dtype),
    ]


Kernel = Callable[[tirx.PrimFunc, str], Any]


def _shared_kernels(layout: CacheLayout, kernel: Kernel) -> tuple[Any, Any, Any, Any]:
    kv, d, dtype = layout.kv_heads, layout.head_dim, layout.dtype
    rope = tvm_kernels.llama_rope_with_position_map(
        layout.rope_theta,
        layout.rope_scale,
        d,
        layout.heads,
        kv,
        dtype,
        layout.rope_scaling or {},
        layout.rotary_dim or d,
    )
    return (
        kernel(tvm_kernels._kv_cache_transpose_append(kv, d, dtype), "kv_cache_append"),
        kernel(tvm_kernels._kv_cache_transpose_append_mla(d, dtype), "kv_cache_append_mla"),
        kernel(rope, "split_rotary"),
        kernel(
            tvm_kernels._kv_cache_debug_get_kv(layout.layers, kv, d, dtype), "kv_cache_debug_get_kv"
        ),
    )


def _cpu_kernels(
    layout: CacheLayout, page: tirx.Var, target: Target, kernel: Kernel, task: Kernel
) -> list[Any]:
    k = tvm_kernels
    h, kv, d, dtype = layout.heads, layout.kv_heads, layout.head_dim, layout.dtype
    scaling = layout.rope_scaling or {}
    append, append_mla, rope, debug = _shared_kernels(layout, kernel)
    return [
        append,
        append_mla,
        task(k._attention_prefill_ragged_cpu(kv, h, d, d, dtype, scaling), "prefill_ragged"),
        task(k._attention_prefill_cpu(kv, h, d, dtype, False, scaling), "prefill_paged"),
        task(k._attention_decode_cpu(kv, h, d, dtype, False, scaling), "decode_paged"),
        task(k._attention_prefill_cpu(kv, h, d, dtype, True, scaling), "prefill_sliding"),
        task(k._attention_decode_cpu(kv, h, d, dtype, True, scaling), "decode_sliding"),
        task(k.tree_attn_cpu(kv, h, d, dtype, scaling), "prefill_tree"),
        task(k.tree_attn_with_paged_kv_cache_cpu(kv, h, d, dtype, scaling), "prefill_tree_paged"),
        relax.Tuple([]),
        relax.Tuple([kernel(k._merge_state_inplace_cpu(dtype), "merge_state")]),
        rope,
        kernel(k._copy_single_page_cpu(kv, page, d, dtype), "copy_single_page"),
        debug,
        kernel(k._compact_kv_copy_cpu(kv, d, dtype), "compact_kv_copy"),
    ]


def _gpu_kernels(
    layout: CacheLayout, page: tirx.Var, target: Target, kernel: Kernel, task: Kernel
) -> list[Any]:
    k = tvm_kernels
    h, kv, d, dtype = layout.heads, layout.kv_heads, layout.head_dim, layout.dtype
    scaling = layout.rope_scaling or {}
    append, append_mla, rope, debug = _shared_kernels(layout, kernel)
    merge = k._merge_state_inplace(h, d, dtype, target, "merge_state")
    tree, tree_paged = k.tree_attn, k.tree_attn_with_paged_kv_cache
    return [
        append,
        append_mla,
        task(k._attention_prefill_ragged(kv, h, d, d, dtype, scaling, target), "prefill_ragged"),
        task(k._attention_prefill(kv, h, d, dtype, False, scaling, target), "prefill_paged"),
        task(k._attention_decode(kv, h, d, dtype, False, scaling, target), "decode_paged"),
        task(k._attention_prefill(kv, h, d, dtype, True, scaling, target), "prefill_sliding"),
        task(k._attention_decode(kv, h, d, dtype, True, scaling, target), "decode_sliding"),
        task(tree_paged(kv, h, d, dtype, scaling, target), "prefill_tree_paged"),
        task(tree(kv, h, d, dtype, scaling, target), "prefill_tree"),
        relax.Tuple([]),
        relax.Tuple([kernel(merge, "merge_state")]),
        rope,
        kernel(k._copy_single_page(kv, page, d, dtype, target), "copy_single_page"),
        debug,
        kernel(k._compact_kv_copy(kv, d, dtype, target), "compact_kv_copy"),
    ]

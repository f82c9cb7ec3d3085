"""``create_tir_paged_kv_cache``: the runtime's paged cache, told which kernels to run.

    (max_batch), (max_total_length), (prefill_chunk), (page_size), (sliding 0|1) -> cache

The cache object lives in TVM's runtime; this function hands it the model's sizes and one PrimFunc
per task (append, rope, attention over pages or over the chunk, merge, copy). Five numbers describe
its size: runtimes before August 2026, which released MLC engines carry, refuse the sixth that newer
front ends write, and newer runtimes take both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.frontend.nn.llm import kv_cache as tvm_kernels
from tvm.target import Target

from mlc_bridge.errors import CompileError
from tir_schedules.cpu.attention import cpu_kv_cache_functions

SIZES = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "sliding")
PAGE = 16
MHA = 0
ROPE_NONE, ROPE_NORMAL = 0, 1


@dataclass(frozen=True)
class CacheLayout:
    """What the cache must know of a model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    rope_theta: float
    rope_scale: float = 1.0
    rope_scaling: dict[str, Any] | None = None
    rotary_dim: int | None = None
    rotates: bool = True
    """False where the graph itself rotates queries and keys."""
    window: int | None = None
    """Positions that a local layer sees; it is told by a negative scale of its scores."""
    score_cap: float | None = None

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
    kernels = (
        cpu_kernels(layout, target) if target.kind.name == "llvm" else gpu_kernels(layout, target)
    )
    builder = relax.BlockBuilder(mod)
    size = {name: tirx.Var(name, "int64") for name in SIZES}
    params = [relax.Var(f"{name}_", relax.ShapeType([var])) for name, var in size.items()]
    with builder.function("create_tir_paged_kv_cache", params=params):
        added = {
            name: builder.add_func(func.with_attr("global_symbol", f"kv_{name}"), f"kv_{name}")
            for name, func in kernels.items()
        }
        call = relax.call_pure_packed(
            "vm.builtin.paged_attention_kv_cache_create",
            relax.ShapeExpr(list(size.values())),
            *_model(layout),
            *_tasks(added),
            ty_args=relax.AnyType(),
        )
        builder.emit_func_output(builder.emit(call))
    return builder.finalize()


def _model(layout: CacheLayout) -> list[Any]:
    """The constructor's arguments that describe the model."""
    return [
        relax.ShapeExpr([0, layout.layers]),
        relax.prim_value(layout.heads),
        relax.prim_value(layout.kv_heads),
        relax.prim_value(layout.head_dim),
        relax.prim_value(layout.head_dim),
        relax.ShapeExpr([MHA] * layout.layers),
        relax.prim_value(False),
        relax.prim_value(ROPE_NORMAL if layout.rotates else ROPE_NONE),
        relax.prim_value(layout.rope_scale),
        relax.prim_value(layout.rope_theta),
        relax.prim_value(0),  # no lists of factors: their kernel picks one by a call's length
        relax.op.zeros((), layout.dtype),
    ]


def _tasks(kernel: dict[str, Any]) -> list[Any]:
    """The constructor's arguments that are kernels."""
    append, *attention, merge, rope, copy, debug, compact = kernel.values()
    return [
        append,
        append,  # the latent-attention variant, which these models never call
        *(relax.Tuple([tvm.ir.StringImm("tirx"), task]) for task in attention),
        relax.Tuple([]),
        relax.Tuple([merge]),
        rope,
        copy,
        debug,
        compact,
    ]


def cpu_kernels(layout: CacheLayout, target: Target) -> dict[str, tirx.PrimFunc]:
    """Name -> kernel in the constructor's order."""
    return cpu_kv_cache_functions(
        num_layers=layout.layers,
        num_q=layout.heads,
        num_kv=layout.kv_heads,
        qk_head_dim=layout.head_dim,
        v_head_dim=layout.head_dim,
        dtype=layout.dtype,
        rope_theta=layout.rope_theta,
        rope_scale=layout.rope_scale,
        rope_scaling=layout.rope_scaling,
        rotary_dim=layout.rotary_dim or layout.head_dim,
        target=target,
        page_size=PAGE,
        softcap=layout.score_cap,
        window=layout.window,
    )


def gpu_kernels(layout: CacheLayout, target: Target) -> dict[str, tirx.PrimFunc]:
    """Name -> kernel in the constructor's order; TVM's own, which know no window and no cap."""
    for what in ("window", "score_cap"):
        if getattr(layout, what) is not None:
            raise CompileError(
                f"attention with a {what} has no CUDA kernels", todo="Compile for --device cpu"
            )
    k = tvm_kernels
    h, kv, d, dtype = layout.heads, layout.kv_heads, layout.head_dim, layout.dtype
    theta, scaling = layout.rope_theta, layout.rope_scaling or {}
    last = (scaling, target)
    return {
        "append": k._kv_cache_transpose_append(kv, d, dtype),
        "prefill_ragged": k._attention_prefill_ragged(kv, h, d, d, dtype, *last),
        "prefill": k._attention_prefill(kv, h, d, dtype, False, *last),
        "decode": k._attention_decode(kv, h, d, dtype, False, *last),
        "prefill_sliding": k._attention_prefill(kv, h, d, dtype, True, *last),
        "decode_sliding": k._attention_decode(kv, h, d, dtype, True, *last),
        "prefill_tree_paged": k.tree_attn_with_paged_kv_cache(kv, h, d, dtype, *last),
        "prefill_tree": k.tree_attn(kv, h, d, dtype, *last),
        "merge_state": k._merge_state_inplace(h, d, dtype, target, "merge_state"),
        "split_rotary": k.llama_rope_with_position_map(
            theta, layout.rope_scale, d, h, kv, dtype, scaling, layout.rotary_dim or d
        ),
        "copy_page": k._copy_single_page(kv, PAGE, d, dtype, target),
        "debug_get_kv": k._kv_cache_debug_get_kv(layout.layers, kv, d, dtype),
        "compact": k._compact_kv_copy(kv, d, dtype, target),
    }

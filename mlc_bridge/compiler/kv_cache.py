"""``create_tir_paged_kv_cache``: the runtime's paged cache, told which kernels to run.

    (max_batch), (max_total_length), (prefill_chunk), (page_size), (sliding 0|1) -> cache

The cache object lives in TVM's runtime; this function hands it the model's sizes and one PrimFunc
per task (append, rope, attention over pages or over the chunk, merge, copy). Five numbers describe
its size: runtimes before August 2026, which released MLC engines carry, refuse the sixth that newer
front ends write, and newer runtimes take both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import tvm
from tvm import relax, tirx
from tvm.target import Target

from mlc_bridge.errors import CompileError
from tir_schedules.cpu.attention import cpu_kv_cache_functions
from tir_schedules.gpu.attention import Heads, gpu_kv_cache_functions, has_attention

SIZES = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "sliding")
PAGE = 16
MHA = 0
ROPE_NONE, ROPE_NORMAL = 0, 1


class Rotation(Protocol):
    """How the cache rotates queries and keys, where it does."""

    @property
    def theta(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def scaling(self) -> tuple[tuple[str, Any], ...] | None: ...
    @property
    def rotary_dim(self) -> int | None: ...


class Pages(Protocol):
    """The geometry of one layer's keys and values; no ``rope`` where the graph rotates."""

    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def score_cap(self) -> float | None: ...
    @property
    def rope(self) -> Rotation | None: ...
    @property
    def sinks(self) -> bool: ...


@dataclass(frozen=True)
class CacheLayout:
    """What the cache must know of a model."""

    layers: int
    dtype: str
    pages: Pages
    window: int | None = None
    """Positions that a local layer sees; it is told by a negative scale of its scores."""

    @property
    def rotation(self) -> tuple[float, float, dict[str, Any], int]:
        """Base, position scale, TVM's scaling block and rotated width; plain where unused."""
        rope, width = self.pages.rope, self.pages.head_dim
        if rope is None:
            return 10_000.0, 1.0, {}, width
        return rope.theta, rope.scale, dict(rope.scaling or ()), rope.rotary_dim or width

    def metadata(self) -> dict[str, int]:
        """The ``kv_cache`` block of ``_metadata``."""
        return {
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.pages.heads,
            "num_key_value_heads": self.pages.kv_heads,
            "head_dim": self.pages.head_dim,
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
    pages, (theta, scale, *_) = layout.pages, layout.rotation
    return [
        relax.ShapeExpr([0, layout.layers]),
        relax.prim_value(pages.heads),
        relax.prim_value(pages.kv_heads),
        relax.prim_value(pages.head_dim),
        relax.prim_value(pages.head_dim),
        relax.ShapeExpr([MHA] * layout.layers),
        relax.prim_value(False),
        relax.prim_value(ROPE_NORMAL if pages.rope else ROPE_NONE),
        relax.prim_value(scale),
        relax.prim_value(theta),
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
    pages, (theta, scale, scaling, rotary) = layout.pages, layout.rotation
    return cpu_kv_cache_functions(
        num_layers=layout.layers,
        num_q=pages.heads,
        num_kv=pages.kv_heads,
        qk_head_dim=pages.head_dim,
        v_head_dim=pages.head_dim,
        dtype=layout.dtype,
        rope_theta=theta,
        rope_scale=scale,
        rope_scaling=scaling,
        rotary_dim=rotary,
        target=target,
        page_size=PAGE,
        softcap=pages.score_cap,
        window=layout.window,
        spare=pages.sinks,
    )


def gpu_kernels(layout: CacheLayout, target: Target) -> dict[str, tirx.PrimFunc]:
    """Name -> kernel in the constructor's order."""
    pages, (theta, scale, scaling, rotary) = layout.pages, layout.rotation
    heads = Heads(
        pages.heads,
        pages.kv_heads,
        pages.head_dim,
        layout.dtype,
        layout.window,
        pages.score_cap,
        PAGE,
        pages.sinks,
    )
    needs = {"window": layout.window, "score_cap": pages.score_cap, "sinks": pages.sinks or None}
    for what, value in needs.items():
        if value is not None and not has_attention(heads, target):
            raise CompileError(
                f"attention with a {what} has no CUDA kernels for this",
                found=f"{layout.dtype}, heads of {heads.d}, {target.attrs.get('arch')}",
                expected="float16 or bfloat16, heads of a multiple of 16 (of 32 above 128, at most "
                "256), sm_80 or newer",
                todo="Quantize to a half type (q0f16), or compile for --device cpu",
            )
    return gpu_kv_cache_functions(
        heads,
        target,
        num_layers=layout.layers,
        rope_theta=theta,
        rope_scale=scale,
        rope_scaling=scaling,
        rotary_dim=rotary,
    )

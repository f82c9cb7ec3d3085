"""Module passes of our own: what MLC's engine expects of a lib beyond the model's functions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import IRModule, Op
from tvm.ir.transform import Pass
from tvm.relax.expr_functor import PyExprVisitor, visitor
from tvm.target import Target

from mlc_bridge.compiler.kernels import KernelChoice
from mlc_bridge.compiler.kernels import explain as kernel_choices
from mlc_bridge.compiler.kv_cache import CacheLayout, attach_cache
from mlc_bridge.compiler.logits import attach_logit_processors, attach_softmax
from mlc_bridge.compiler.rnn_state import StateLayout, attach_state
from tir_schedules import Rule


def module_pass(name: str, rewrite: Callable[[IRModule], IRModule]) -> Pass:
    """A plain function from module to module as a named pass."""

    @tvm.ir.transform.module_pass(opt_level=0, name=name)
    def run(mod: IRModule, _: Any) -> IRModule:
        return rewrite(mod)

    return run


def kv_cache(layout: CacheLayout, target: Target) -> Pass:
    return module_pass("KVCache", lambda mod: attach_cache(mod, layout, target))


def rnn_state(layout: StateLayout, target: Target) -> Pass:
    return module_pass("RNNState", lambda mod: attach_state(mod, layout, target))


def softmax(vocab: int, active: int | None) -> Pass:
    return module_pass("Softmax", lambda mod: attach_softmax(mod, vocab, active))


def logit_processors(target: Target) -> Pass:
    return module_pass("LogitProcessors", lambda mod: attach_logit_processors(mod, target))


def bounds(upper: Mapping[str, int]) -> Pass:
    """Upper bounds of symbolic sizes: all memory is planned once, for the largest call."""
    attrs = {
        "tir_var_upper_bound": dict(upper),
        "relax.memory_plan_dynamic_func_output": True,
    }

    def rewrite(mod: IRModule) -> IRModule:
        mod = mod.clone()
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mod[var] = func.with_attrs(attrs)
        return mod

    return module_pass("Bounds", rewrite)


def recorded_batches() -> Pass:
    """Lets ``batch_decode`` be recorded as CUDA graphs, one for each batch size that occurs.

    TVM records only what has constant shapes; ``decode`` has; here the named size counts as one.
    """
    hint = {"relax.rewrite_cuda_graph.capture_symbolic_vars": ["batch_size"]}

    def rewrite(mod: IRModule) -> IRModule:
        mod = mod.clone()
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function) and var.name_hint == "batch_decode":
                mod[var] = func.with_attrs(hint)
        return mod

    return module_pass("RecordedBatches", rewrite)


def without_tensor_cores() -> Pass:
    """Keeps TVM's tensor-core rule off the linear layers that our own rule leaves to it.

    It expects float16 products, ours are float32; TVM 0.27 then fails to tensorize them, and
    crashes the process while it writes the error. Left to it: k that is no multiple of 32, GPUs
    before sm_80.
    """

    def rewrite(mod: IRModule) -> IRModule:
        mod = mod.clone()
        for var, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[var] = func.with_attr("dlight.do_not_tensorize", True)
        return mod

    return module_pass("WithoutTensorCores", rewrite)


def embedding_allocator(chunk: int) -> Pass:
    """``alloc_embedding_tensor() -> [chunk, h]``: MLC's engine learns the hidden size from it."""

    def rewrite(mod: IRModule) -> IRModule:
        out = mod["embed"].ret_ty
        builder = relax.BlockBuilder(mod)
        with builder.function("alloc_embedding_tensor", []):
            shape = relax.ShapeExpr([chunk, out.shape[-1]])
            tensor = relax.op.builtin.alloc_tensor(shape, str(out.dtype), runtime_device_index=0)
            builder.emit_func_output(builder.emit(tensor))
        return builder.finalize()

    return module_pass("EmbeddingAllocator", rewrite)


def explain(
    target: Target, rules: Sequence[Rule], params: Sequence[str], kernels: list[KernelChoice]
) -> Pass:
    """Leaves the module as it is; ``kernels`` is filled with what the rules will choose."""

    def note(mod: IRModule) -> IRModule:
        kernels[:] = kernel_choices(mod, target, rules, params)
        return mod

    return module_pass("Explain", note)


def metadata(block: Mapping[str, Any], usage: dict[str, int]) -> Pass:
    """``_metadata() -> str``; ``usage`` is filled with the planned bytes of every function."""

    def rewrite(mod: IRModule) -> IRModule:
        usage.update(memory_usage(mod))
        builder = relax.BlockBuilder(mod.clone())
        with builder.function("_metadata", []):
            text = json.dumps({**block, "memory_usage": usage})
            builder.emit_func_output(tvm.ir.StringImm(text))
        return builder.finalize()

    return module_pass("Metadata", rewrite)


def memory_usage(mod: IRModule) -> dict[str, int]:
    """Function -> bytes of static storage that memory planning gave it."""
    return {
        var.name_hint: _Planned().bytes_of(func)
        for var, func in mod.functions_items()
        if isinstance(func, relax.Function)
    }


@visitor
class _Planned(PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def bytes_of(self, func: relax.Function) -> int:
        self.visit_expr(func)
        return self.total

    def visit_call_(self, call: relax.Call) -> None:
        if call.op == Op.get("relax.builtin.alloc_tensor"):
            width = tvm.DataType(call.args[1].value)
            self._add(call.args[0], (width.bits * width.lanes + 7) // 8)
        elif call.op == Op.get("relax.memory.alloc_storage"):
            self._add(call.args[0], 1)
        super().visit_call_(call)

    def _add(self, shape: relax.ShapeExpr, width: int) -> None:
        if all(isinstance(n, tirx.IntImm) for n in shape.values):
            self.total += width * math.prod(int(n) for n in shape.values)

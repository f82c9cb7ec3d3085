"""IRModule -> lib.so: five phases, each a function that returns a plain list of passes.

attach     what an engine expects beside the model: cache, softmax, logit processors, bounds
fuse       relax operators become PrimFuncs, elementwise neighbours join them
schedule   the rules of ``tir_schedules`` for the target, in their order, Fallback last; what each
           function gets is noted first
plan       PrimFunc calls with explicit memory, planned once for the largest sizes
lower      what the virtual machine executes

``compile_module(..., dump=dir)`` writes the module after each phase as readable script.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir.instrument import pass_instrument
from tvm.ir.transform import Pass, PassContext, PassInfo, Sequential
from tvm.relax import transform
from tvm.s_tir import dlight
from tvm.target import Target

import tir_schedules
from mlc_bridge.compiler import passes
from mlc_bridge.compiler.kernels import KernelChoice
from mlc_bridge.compiler.kv_cache import CacheLayout
from mlc_bridge.compiler.linker import find_linker, link_for
from mlc_bridge.compiler.rnn_state import StateLayout
from mlc_bridge.errors import BridgeError, CompileError, ConfigError
from tir_schedules.plugins import GROUP

# Half of the lowering's time. The first sizes each kernel's buffers anew from what it can prove of
# their use, which for our exact ones ends in long run-time expressions; the others are for GPUs.
IDLE_ON_CPUS = (
    "s_tir.CompactBufferAllocation",
    "s_tir.InjectPermutedLayout",
    "s_tir.InjectSoftwarePipeline",
    "s_tir.InjectVirtualThread",
)


@dataclass(frozen=True)
class Unit:
    """One model to compile: its functions and what its lib says about itself."""

    mod: tvm.IRModule
    cache: CacheLayout
    state: StateLayout | None
    metadata: Mapping[str, Any]
    chunk: int
    vocab: int
    bounds: Mapping[str, int]
    active_vocab: int | None = None
    cuda_graph: bool = True
    usage: dict[str, int] = field(default_factory=dict)
    kernels: list[KernelChoice] = field(default_factory=list)


def attach(unit: Unit, target: Target) -> list[Pass]:
    return [
        passes.kv_cache(unit.cache, target),
        *([passes.rnn_state(unit.state, target)] if unit.state else []),
        passes.softmax(unit.vocab, unit.active_vocab),
        passes.logit_processors(target),
        passes.embedding_allocator(unit.chunk),
        passes.bounds(unit.bounds),
        tirx.transform.BindTarget(target),
    ]


def fuse() -> list[Pass]:
    return [
        # A reshape stays an operator: memory planning then makes it a view, not a copy.
        transform.LegalizeOps(skip_ops=["relax.reshape"]),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]


def explain(unit: Unit, target: Target) -> list[Pass]:
    params = [param["name"] for param in unit.metadata.get("params", ())]
    return [passes.explain(target, _rules(target), params, unit.kernels)]


def schedule(target: Target) -> list[Pass]:
    apply = dlight.ApplyDefaultSchedule(*_rules(target))
    return [passes.without_tensor_cores(), apply] if target.kind.name == "cuda" else [apply]


def _rules(target: Target) -> list[tir_schedules.Rule]:
    try:
        return tir_schedules.RULES(target)
    except ImportError as problem:
        raise ConfigError(
            str(problem),
            where=GROUP,
            todo="Repair or uninstall the package that brings it",
        ) from problem


def plan_memory() -> list[Pass]:
    return [
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
    ]


def plan(unit: Unit) -> list[Pass]:
    return [
        *plan_memory(),
        passes.metadata({**unit.metadata, **_states(unit)}, unit.usage),
    ]


def _states(unit: Unit) -> dict[str, Any]:
    """What the lib says of its states: the cache in MLC's words, the recurrence in our block."""
    told: dict[str, Any] = {"kv_cache": unit.cache.metadata()}
    if unit.state is not None:
        own = {**unit.metadata["mlc_bridge"], "state_bytes": unit.state.nbytes}
        told |= {"kv_state_kind": "hybrid", "mlc_bridge": own}
    return told


def lower(target: Target, cuda_graph: bool = True) -> list[Pass]:
    recorded = cuda_graph and target.kind.name == "cuda"
    graphs = [passes.recorded_batches(), transform.RewriteCUDAGraph()] if recorded else []
    return [
        *graphs,
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]


def phases(unit: Unit, target: Target) -> dict[str, list[Pass]]:
    """Every phase with its passes, in order."""
    return {
        "attach": attach(unit, target),
        "fuse": fuse(),
        "schedule": [*explain(unit, target), *schedule(target)],
        "plan": plan(unit),
        "lower": lower(target, unit.cuda_graph),
    }


def compile_module(
    unit: Unit, target: Target, dump: Path | None = None, between: Callable[[], None] = lambda: None
) -> Any:
    """The executable of ``unit``; TVM's own failures come out as CompileError.

    ``between`` is called before every pass and may raise to end the compilation; TVM tells neither
    kind nor text of what it raised, so that it too comes out as CompileError.
    """
    mod = unit.mod
    context = PassContext(
        # RewriteCUDAGraph does nothing without the second.
        config={"tirx.disable_cse_tir": True, "relax.backend.use_cuda_graph": unit.cuda_graph},
        disabled_pass=IDLE_ON_CPUS if target.kind.name == "llvm" else (),
        instruments=[_BeforePass(between)],
    )
    try:
        with target, context:
            for number, (name, sequence) in enumerate(phases(unit, target).items()):
                mod = Sequential(sequence)(mod)
                if dump is not None:
                    dump.mkdir(parents=True, exist_ok=True)
                    (dump / f"{number}-{name}.py").write_text(mod.script())
            return relax.build(mod, target, relax_pipeline=None)
    except BridgeError:
        raise
    except Exception as error:
        raise CompileError(
            "the compiler failed on this model",
            where=target.kind.name,
            found=_summary(error),
            todo="With --dump DIR the module after each phase can be read",
        ) from error


@pass_instrument
class _BeforePass:
    """Calls ``action`` before every pass."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def run_before_pass(self, mod: tvm.IRModule, info: PassInfo) -> None:
        self.action()


def _summary(error: Exception) -> str:
    """TVM's errors are pages of source; the line that says what is wrong is enough here."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:") or "Check failed" in line]
    return f"{type(error).__name__}: {(told or lines or ['?'])[0][:300]}"


def export(executable: Any, output: Path, machine: str | None = None) -> None:
    """Write the shared library: a temporary neighbour first, then renamed, so never half a file."""
    find_linker(machine)
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".so", dir=output.parent)
    os.close(handle)
    try:
        executable.export_library(name, fcompile=link_for(machine))
        os.chmod(name, 0o755)
        os.replace(name, output)
    finally:
        Path(name).unlink(missing_ok=True)

"""compile: ``mlc-chat-config.json`` in, ``lib.so`` out. The weights are not needed.

The config names the architecture and the scheme; together they give the relax graph and the names,
shapes and dtypes of all parameters. Their fingerprint goes into the lib, so that an engine can
refuse weights of another build before it starts.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.interrupts import HeldInterrupts
from mlc_bridge.artifact.inventory import LIB_NAME, is_library
from mlc_bridge.artifact.manifest import WINDOW, fingerprint
from mlc_bridge.artifact.workspace import Workspace
from mlc_bridge.compiler.cache import build_key, default_directory, fetch, store
from mlc_bridge.compiler.kernels import KernelChoice, cliffs
from mlc_bridge.compiler.linker import find_linker
from mlc_bridge.compiler.opt import Options, read_options
from mlc_bridge.compiler.target import (
    check_host,
    cross_machine,
    kernel_flags,
    make_target,
    target_options,
)
from mlc_bridge.errors import CompileError, ConfigError, MissingDependency
from mlc_bridge.hub_id import is_remote
from mlc_bridge.models import MODELS
from mlc_bridge.models.arch import parameters
from mlc_bridge.models.decoder.state import KVPages, Recurrent
from mlc_bridge.record import Record
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages import wishes
from mlc_bridge.stages.certificate import versions
from mlc_bridge.stages.door import door
from mlc_bridge.stages.located import located
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.scheme_map import SchemeMap

if TYPE_CHECKING:
    from tvm.target import Target

    from mlc_bridge.compiler.kv_cache import CacheLayout
    from mlc_bridge.compiler.pipeline import Unit
    from mlc_bridge.compiler.rnn_state import StateLayout
    from mlc_bridge.models.arch import Arch, ModelConfig
    from mlc_bridge.models.decoder.state import State
    from mlc_bridge.schemes import Scheme

STEPS = ("graph", "compile", "link")
PASSES = 163  # that TVM 0.27 runs for llvm, and the code generator; a target with more stays full
HYBRID_WORDS = (
    "recurrent layers: MLC LLM's own engine runs this library since April 2026, with "
    "prefix_cache_mode=disable (its prefix cache takes states back, which it cannot)"
)
SUFFIXES = (".so", ".dylib") if sys.platform == "darwin" else (".so",)
PACKAGE = Path(__file__).parents[1]
COMPILER = [PACKAGE / room for room in ("models", "schemes", "compiler")]


@dataclass(frozen=True)
class CompileJob(Record):
    """``model_dir`` is an artifact directory; the limits default to those of its config.

    With ``cache`` a library of an equal build is copied from the user's cache directory and a new
    one kept there. ``dump`` gets the module after each phase, and always compiles.
    """

    model_dir: wishes.ArtifactPath
    output: Annotated[
        str | Path | None, "File to write; default is lib.so in the model directory."
    ] = None
    device: wishes.TargetDevice = "auto"
    target: wishes.Target = None
    host: wishes.Host = "auto"
    quantization: Annotated[str | None, "Scheme; it must be the one of mlc-chat-config.json."] = (
        None
    )
    opt: wishes.Opt = None
    context_window_size: wishes.ContextWindow = None
    prefill_chunk_size: wishes.PrefillChunk = None
    max_batch_size: wishes.MaxBatch = None
    dump: Annotated[str | Path | None, "Directory for the module after each phase."] = None
    cache: wishes.KeepLibs = True


@dataclass(frozen=True)
class CompileReport(Record):
    path: Annotated[Path, "Library written."]
    target: Annotated[str, "What it was compiled for, as TVM's JSON."]
    size: Annotated[int, "Bytes of the library."]
    seconds: Annotated[float, "Time it took."]
    memory_usage: Annotated[dict[str, int], "Function -> bytes of working memory planned for it."]
    fingerprint: Annotated[str, "Hash of the graph; that of the weights it fits."]
    cached: Annotated[bool, "Whether it came from the user's cache."] = False
    kernels: Annotated[tuple[KernelChoice, ...], "What computes each function."] = ()
    notes: Annotated[tuple[str, ...], "What the user should know."] = ()


@dataclass(frozen=True)
class CompilePlan:
    """Everything that the artifact's config decides; needs no compiler."""

    arch: Arch
    scheme: Scheme
    config: ModelConfig
    target: dict[str, Any]
    metadata: dict[str, Any]
    active_vocab: int | None
    options: Options

    @property
    def key(self) -> str:
        """Equal keys mean equal libraries."""
        described = {
            "target": self.target,
            "metadata": self.metadata,
            "model_config": self.config.asdict(),
            "linker": find_linker(cross_machine(self.target)),
            **({} if self.options.cuda_graph else {"cuda_graph": False}),
        }
        own = [_source(type(self.arch)), _source(type(self.scheme)), Path(__file__)]
        return build_key(described, [*COMPILER, *_schedules(), *own])


@door
def compile_model(job: CompileJob, progress: Progress = silent) -> CompileReport:
    """Compile the model of an artifact directory.

    Raises ArtifactError or ConfigError for the config, CompileError for target and toolchain.
    """
    started = time.perf_counter()
    job = _placed(job)
    output = Path(job.output or Path(job.model_dir) / LIB_NAME)
    if output.is_dir():
        raise CompileError("the output is a directory", where=output, expected="a file name")
    if output.suffix not in SUFFIXES:
        raise CompileError(
            "the output's name is not that of a shared library",
            where=output,
            expected=" or ".join(SUFFIXES),
        )
    check_toolchain(job.device, job.target, job.host)
    progress(STEPS[0], 0, 1)
    plan = make_plan(job)
    about = {"target": plan.target, "versions": versions("mlc-bridge", "apache-tvm")}
    with _published(output, Path(job.model_dir), about) as place:
        kept, notes = _made(job, plan, place, progress)
    progress(STEPS[2], 1, 1)
    kernels = tuple(KernelChoice.read(choice) for choice in notes["kernels"])
    return CompileReport(
        path=output,
        target=json.dumps(plan.target),
        size=output.stat().st_size,
        seconds=time.perf_counter() - started,
        memory_usage=notes["memory_usage"],
        fingerprint=plan.metadata["mlc_bridge"]["fingerprint"],
        cached=kept,
        kernels=kernels,
        notes=(*plan.options.notes, *notes.get("words", ()), *cliffs(kernels)),
    )


def _placed(job: CompileJob) -> CompileJob:
    """The job on a local directory; a library is not written into the hub's cache."""
    if job.output is None and is_remote(str(job.model_dir)):
        raise CompileError(
            "where shall the library go?", where=job.model_dir, todo="Name it with -o"
        )
    return located(job)


def check_toolchain(device: str, target: str | None, host: str = "auto") -> None:
    """Raise at once what would else end a build after all other work: target, linker, tvm."""
    options = target_options(device, target)
    check_host(host)
    find_linker(cross_machine(options))
    if importlib.util.find_spec("tvm") is None:
        raise MissingDependency("apache-tvm", "compile", "pip install 'mlc-bridge[tvm]'")


@contextmanager
def _published(output: Path, model: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Where to put the library: in the model's own directory it is listed as one of its files.

    Elsewhere it is a file that the user named; there only a library is overwritten.
    """
    if output.parent.is_dir() and output.parent.samefile(model):
        with Workspace(output.parent, (output.name,)) as space:
            yield space.temp / output.name
            space.more["compiled"] = about
            space.publish(output.name)
        return
    if output.exists() and not is_library(output):
        raise CompileError("this file is no library and is not overwritten", where=output)
    yield output


def _made(
    job: CompileJob, plan: CompilePlan, output: Path, progress: Progress
) -> tuple[bool, dict[str, Any]]:
    """Whether the library came from the cache, and the notes kept with it."""
    use = job.cache and job.dump is None
    kept = fetch(default_directory(), plan.key, output) if use else None
    notes = kept or _build(plan, output, Path(job.dump) if job.dump else None, progress)
    if use and not kept:
        store(default_directory(), plan.key, output, notes)
    return kept is not None, notes


def make_plan(job: CompileJob) -> CompilePlan:
    """Read the artifact's config and the wish for a target; every bad value is met here."""
    chat = ChatConfig.load(job.model_dir)
    arch, scheme = MODELS[chat.model_type], _scheme(job, chat)
    config = arch.config(
        chat.arch_config,
        context_window_size=job.context_window_size or chat.context_window_size,
        prefill_chunk_size=job.prefill_chunk_size or chat.prefill_chunk_size,
        max_batch_size=job.max_batch_size,
    )
    target = target_options(job.device, job.target)
    metadata = lib_metadata(chat, arch, config, scheme, kernel_flags(target))
    options = read_options(job.opt, target["kind"])
    return CompilePlan(arch, scheme, config, target, metadata, chat.active_vocab_size, options)


def _scheme(job: CompileJob, chat: ChatConfig) -> Scheme:
    """That of the config: weights of one scheme under a library of another would be noise."""
    own = SCHEMES[chat.quantization]
    if job.quantization is not None and SchemeMap.of(job.quantization).first != own.name:
        raise ConfigError(
            "the weights of this directory are of another scheme",
            where="--quantization",
            found=job.quantization,
            expected=own.name,
            todo="Leave it out, or run gen-config and convert for the other scheme",
        )
    return own


def _build(
    plan: CompilePlan, output: Path, dump: Path | None, progress: Progress
) -> dict[str, Any]:
    from mlc_bridge.compiler.pipeline import compile_module, export

    interrupts = HeldInterrupts()
    interrupts.hold()
    try:
        target = make_target(plan.target)
        unit = make_unit(plan, target)
        interrupts.check()
        passes = _Passes(progress, interrupts.check)
        try:
            executable = compile_module(unit, target, dump, passes)
        except CompileError:
            passes.reraise()
            raise
        interrupts.check()
        progress(STEPS[1], PASSES, PASSES)
        progress(STEPS[2], 0, 1)
        export(executable, output, cross_machine(plan.target))
    finally:
        interrupts.release()
    return {
        "memory_usage": dict(unit.usage),
        "kernels": [asdict(c) for c in unit.kernels],
        "words": [HYBRID_WORDS] if unit.state else [],
    }


class _Passes:
    """Called before every pass: counts it, and keeps what ``progress`` raised to end the stage.

    TVM hands on neither kind nor text of an error raised inside it.
    """

    def __init__(self, progress: Progress, check: Callable[[], None]) -> None:
        self._progress, self._check = progress, check
        self._count = 0
        self._raised: BaseException | None = None

    def __call__(self) -> None:
        self._check()
        self._count += 1
        try:
            self._progress(STEPS[1], min(self._count, PASSES - 1), PASSES)
        except BaseException as error:
            self._raised = error
            raise

    def reraise(self) -> None:
        if self._raised is not None:
            raise self._raised


def make_unit(plan: CompilePlan, target: Target) -> Unit:
    """The traced graph and all that the compiler must know beside it."""
    from mlc_bridge.compiler.pipeline import Unit

    config = plan.config
    with target:
        graph = plan.arch.graph(config, plan.scheme)
        if missing := [name for name in ("functions", "states") if not hasattr(graph, name)]:
            raise CompileError(
                f"the graph of the architecture {plan.arch.name} lacks {' and '.join(missing)}",
                where=type(graph).__qualname__,
                todo="models/arch.py says what a graph brings",
            )
        mod, _ = graph.export_tvm(spec=graph.functions())[:2]
    return Unit(
        mod=mod,
        cache=cache_layout(graph.states(), plan.scheme),
        state=state_layout(graph.states(), plan.scheme),
        metadata=plan.metadata,
        chunk=config.prefill_chunk_size,
        vocab=config.vocab_size,
        bounds={
            "total_seq_len": config.context_window_size,
            "seq_len": config.prefill_chunk_size,
            "batch_size": config.max_batch_size,
        },
        active_vocab=plan.active_vocab,
        cuda_graph=plan.options.cuda_graph,
    )


def _source(kind: type) -> Path:
    return Path(inspect.getfile(kind))


def _schedules() -> list[Path]:
    """Where the schedule rules stand, those of other packages too."""
    found = importlib.util.find_spec("tir_schedules")
    own = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    return [*own, *(_place(entry) for entry in entry_points(group="mlc_bridge.schedules"))]


def _place(entry: EntryPoint) -> Path:
    """The module's file; of a module inside a package the folder."""
    try:
        found = importlib.util.find_spec(entry.module)
    except ImportError:
        found = None
    if found is None or found.origin is None:
        raise ConfigError(
            f"the schedule plugin {entry.name} = {entry.value} cannot be found",
            where="mlc_bridge.schedules",
            todo="Repair or uninstall the package that brings it",
        )
    return Path(found.origin).parent if found.parent else Path(found.origin)


def cache_layout(states: Sequence[State], scheme: Scheme) -> CacheLayout:
    """The paged cache of all layers: they share one geometry and one window."""
    from mlc_bridge.compiler.kv_cache import CacheLayout

    every = [state for state in states if isinstance(state, KVPages)]
    windows = {state.window for state in every if state.window is not None}
    kinds = {replace(state, window=None) for state in every}
    if not kinds:
        raise CompileError("no layer has attention, and no engine runs such a model")
    if len(kinds) > 1 or len(windows) > 1:
        raise CompileError(
            "the layers differ in more than a window, which the paged cache cannot hold",
            found=f"{len(kinds)} geometries, windows {sorted(windows)}",
        )
    (pages,) = kinds
    return CacheLayout(len(every), scheme.model_dtype, pages, max(windows, default=None))


def state_layout(states: Sequence[State], scheme: Scheme) -> StateLayout | None:
    """The RNN state of all recurrent layers, which are of one kind; None where there are none."""
    from mlc_bridge.compiler.rnn_state import StateLayout

    every = [state for state in states if isinstance(state, Recurrent)]
    if not every:
        return None
    (kind,) = set(every)
    arrays = tuple((held.size, held.dtype or scheme.model_dtype) for held in kind.arrays)
    return StateLayout(len(every), arrays)


def lib_metadata(
    chat: ChatConfig, arch: Arch, config: ModelConfig, scheme: Scheme, cpu_flags: list[str]
) -> dict[str, Any]:
    """The lib's ``_metadata``, but for the memory usage that the compiler adds."""
    from mlc_bridge import __version__

    block, beyond = config.asdict(), config.restart_beyond
    params = [
        (weight.parameter(suffix), spec.shape, spec.dtype)
        for weight in arch.weights(config)
        for suffix, spec in parameters(weight, scheme, config).items()
    ]
    return {
        "model_type": chat.model_type,
        "quantization": chat.quantization,
        "context_window_size": config.context_window_size,
        "sliding_window_size": -1,  # masked by the kernels; an engine must not roll its cache too
        "attention_sink_size": chat.attention_sink_size,
        "prefill_chunk_size": config.prefill_chunk_size,
        "max_batch_size": config.max_batch_size,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "kv_state_kind": "kv_cache",
        "active_vocab_size": chat.active_vocab_size,
        "model_task": "chat",
        "params": [
            {"name": n, "shape": list(s), "dtype": d, "preprocs": [], "pipeline_stages": [0]}
            for n, s, d in params
        ],
        "mlc_bridge": {
            "version": __version__,
            "fingerprint": fingerprint(chat.model_type, block, params),
            "cpu_flags": cpu_flags,
            **({} if beyond is None else {"restart_beyond": beyond}),
            **{key: block[key] for key in (WINDOW,) if key in block},
        },
    }

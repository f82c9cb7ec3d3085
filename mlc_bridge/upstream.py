"""MLC LLM itself behind our Jobs and Reports; the only file that imports ``mlc_llm``.

Two uses:

* ``register()`` adds to MLC's own tables what they lack: our schemes (AutoAWQ's other group sizes,
  8-bit weights), the AWQ pairs of architectures that have none (qwen2, qwen3, mistral, ...), and
  every source format of ours as a loader. ``python -m mlc_bridge.upstream ARGS`` is the command
  ``mlc_llm ARGS`` with these entries: ``convert_weight --source-format awq`` and ``compile`` work
  for all of them.
* ``gen_config``, ``convert_weight``, ``compile_model`` and ``calibrate`` take our Jobs, run MLC's
  stages in this process and give our Reports (``--backend mlc_llm``).

MLC reads ``rope_theta`` at the top level of config.json only, and its format detection writes an
index into the source directory. It is therefore given a directory of links with both in place; the
user's directory is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.inventory import LIB_NAME
from mlc_bridge.artifact.manifest import fingerprint
from mlc_bridge.artifact.tensor_cache import INDEX, WRITTEN, read_index
from mlc_bridge.artifact.tokenizer_files import COPIED
from mlc_bridge.artifact.workspace import Workspace
from mlc_bridge.engine.runtime import EngineConfig
from mlc_bridge.errors import (
    BridgeError,
    CompileError,
    ConfigError,
    EngineError,
    MissingDependency,
)
from mlc_bridge.models import MODELS
from mlc_bridge.models.arch import Arch, Weight
from mlc_bridge.packing import Array
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.schemes.autoawq import AutoAWQ
from mlc_bridge.schemes.group_quant import GroupQuant
from mlc_bridge.sources import SOURCES
from mlc_bridge.sources.hub import resolve
from mlc_bridge.stages.calibrate import CalibrateJob, CalibrateReport
from mlc_bridge.stages.compile import CompileJob, CompileReport
from mlc_bridge.stages.convert_weight import ConvertJob, ConvertReport
from mlc_bridge.stages.gen_config import GenConfigJob, GenConfigReport
from mlc_bridge.stages.gen_config import gen_config as embedded_gen_config
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import Recognised, home_of, recognise
from mlc_bridge.stages.requantize import Requantize
from mlc_bridge.stages.weight_encoding import encoded

INSTALL = (
    "python -m pip install --pre -U -f https://mlc.ai/wheels mlc-llm-nightly-cpu mlc-ai-nightly-cpu"
    " (cu128 instead of cpu for NVIDIA), in an environment without apache-tvm"
)
_FLOAT_FORMATS = {"dense": "huggingface-safetensor"}
"""Formats that MLC reads well itself; it then quantizes by its own code."""
DROPPED = ("rope_parameters", "rope_scaling", "quantization_config")
"""Keys of config.json that MLC misreads; the weight plan has said all there is in them."""
LIMITS = (
    "context_window_size",
    "sliding_window_size",
    "prefill_chunk_size",
    "attention_sink_size",
    "max_batch_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
    "disaggregation",
)


@dataclass(frozen=True)
class Registered:
    """What ``register`` added to MLC's tables; empty the second time."""

    schemes: tuple[str, ...] = ()
    awq_models: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def available() -> str | None:
    """Version of the installed MLC LLM, or None."""
    try:
        return str(_mlc_llm().__version__)
    except MissingDependency:
        return None


def open_engine(
    model: str, device: str, model_lib: str | None, limits: EngineConfig, threads: int | None
) -> Any:
    """MLC LLM's own ``MLCEngine``. Raises MissingDependency, and EngineError in MLC's words."""
    _use_threads(threads)
    engine = _mlc_llm().MLCEngine
    from mlc_llm.serve.config import EngineConfig as Theirs

    config = Theirs(
        max_num_sequence=limits.max_num_sequence,
        max_total_sequence_length=limits.max_total_sequence_length,
        max_single_sequence_length=limits.context_window_size,
        prefill_chunk_size=limits.prefill_chunk_size,
        prefix_cache_mode="radix" if limits.prefix_cache else "disable",
    )
    lib = model_lib or str(Path(model) / LIB_NAME)
    try:
        return engine(model, device, model_lib=lib, mode="interactive", engine_config=config)
    except Exception as problem:
        said = str(problem).strip().splitlines()
        raise EngineError(
            "MLC LLM cannot open the model", where=model, found=said[-1] if said else None
        ) from problem


def serve(
    model: str, device: str, model_lib: str | None, mode: str, host: str, port: int,
    *, limits: EngineConfig, threads: int | None, origins: Sequence[str],
) -> None:  # fmt: skip
    """Become MLC LLM's own server. Raises MissingDependency."""
    _use_threads(threads)
    _mlc_llm()
    command = [sys.executable, "-m", "mlc_bridge.upstream", "serve", model]
    command += ["--model-lib", model_lib or str(Path(model) / LIB_NAME), "--device", device]
    command += ["--mode", mode, "--host", host, "--port", str(port)]
    command += ["--allow-origins", json.dumps([*origins])]  # MLC's own default is everybody
    command += [] if limits.prefix_cache else ["--prefix-cache-mode", "disable"]
    sizes = {
        "max_num_sequence": limits.max_num_sequence,
        "max_total_seq_length": limits.max_total_sequence_length,
        "context_window_size": limits.context_window_size,
        "prefill_chunk_size": limits.prefill_chunk_size,
    }
    if given := [f"{name}={size}" for name, size in sizes.items() if size is not None]:
        command += ["--overrides", ";".join(given)]
    os.execv(sys.executable, command)


def _use_threads(count: int | None) -> None:
    """TVM reads it when it is imported."""
    if count is not None:
        os.environ["TVM_NUM_THREADS"] = str(count)


def register() -> Registered:
    """Add our schemes, sources and the missing AWQ pairs to MLC's tables; keeps what is there."""
    _mlc_llm()
    from mlc_llm.loader import LOADER
    from mlc_llm.model import MODELS as THEIRS
    from mlc_llm.quantization import QUANTIZATION
    from mlc_llm.quantization.model_quantization import make_awq_quant

    schemes = [q for q in _schemes() if q.name not in QUANTIZATION]
    QUANTIZATION.update({q.name: q for q in schemes})
    sources = [name for name in SOURCES if name not in LOADER]
    LOADER.update(dict.fromkeys(sources, Loader))
    awq = []
    for name in (n for n in MODELS if n in THEIRS):
        model, arch = THEIRS[name], MODELS[name]
        for source in SOURCES:
            model.source.setdefault(source, _planner(arch, source))
        if "awq" not in model.source or "awq" not in model.quantize:
            model.source["awq"] = _awq_map(arch)
            model.quantize["awq"] = make_awq_quant(model.model)
            model.config = _reads_awq(model.config)
            awq.append(name)
    return Registered(tuple(q.name for q in schemes), tuple(awq), tuple(sources))


def gen_config(job: GenConfigJob, progress: Progress = silent) -> GenConfigReport:
    """MLC's ``gen_config``; an ``auto`` template is derived and proven by us and handed to it."""
    register()
    from mlc_llm.conversation_template import ConvTemplateRegistry
    from mlc_llm.interface.gen_config import gen_config as run
    from mlc_llm.protocol.conversation_protocol import Conversation

    home, output = resolve(job.model_dir), Path(job.output)
    with tempfile.TemporaryDirectory(prefix="mlc-bridge-") as draft:
        ours = embedded_gen_config(replace(job, output=Path(draft) / "ours"))
    chat, template = ours.config, job.conv_template
    if template == "auto":
        template = f"{chat.conv_template.name or 'own'} (derived)"
        known = {**chat.conv_template.model_dump(exclude_none=True), "name": template}
        ConvTemplateRegistry.register_conv_template(Conversation.model_validate(known), True)
    limits = {name: chat.arch_config.get(name) for name in LIMITS}
    with (
        _staged(home, MODELS[chat.model_type], chat.arch_config) as source,
        _published(output, (CONFIG_NAME, *COPIED), CONFIG_NAME) as made,
        _translated(job),
    ):
        run(
            config=source / "config.json",
            model=_their_model(chat.model_type),
            quantization=_their_scheme(chat.quantization),
            conv_template=template,
            output=made,
            **limits,
        )
    progress("config", 1, 1)
    return replace(ours, output=output, config=ChatConfig.load(output))


def convert_weight(job: ConvertJob, progress: Progress = silent) -> ConvertReport:
    """MLC's ``convert_weight``; float checkpoints by its own loader and rounding."""
    register()
    if job.requantize:
        raise ConfigError("--requantize is not possible with --backend mlc_llm")
    import tvm
    from mlc_llm.interface.convert_weight import convert_weight as run

    start = time.perf_counter()
    plan = recognise(job.model_dir, job.source, job.source_format, job.quantization)
    home = home_of(job.model_dir if job.source is None else job.source)
    model = _their_model(plan.arch.name)
    form = _FLOAT_FORMATS.get(plan.source.name, plan.source.name)
    if plan.ckpt.renamed and form != plan.source.name:
        raise ConfigError(
            "MLC LLM's own loader does not read the text part of this multimodal checkpoint",
            where=plan.ckpt.path, todo="Leave out --backend",
        )  # fmt: skip
    if form == plan.source.name:  # our loader, with the plan that is already made
        model = replace(model, source={**model.source, form: lambda config, scheme: Bound(plan)})
    progress("convert", 0, plan.nbytes)
    with (
        _staged(home, plan.arch, plan.config.asdict(), plan) as source,
        _published(Path(job.output), WRITTEN, INDEX) as made,
        _translated(job),
    ):
        run(
            config=source / "config.json",
            quantization=_their_scheme(plan.scheme.name),
            model=model,
            device=tvm.cpu(0),
            source=source / "model.safetensors.index.json",
            source_format=form,
            output=made,
        )
    cache = read_index(job.output)
    nbytes = sum(record.nbytes for record in cache.records.values())
    progress("convert", plan.nbytes, plan.nbytes)
    return ConvertReport(
        output=Path(job.output),
        model_type=plan.arch.name,
        source_format=plan.source.name,
        quantization=plan.scheme.name,
        fingerprint=plan.fingerprint,
        n_params=len(cache.records),
        nbytes=nbytes,
        checkpoint_nbytes=plan.checkpoint_nbytes,
        sizes={"all": nbytes},
        weights=plan.elements,
        scales_rounded=0,
        float_layers=tuple(plan.config.float_layers),
        requantized=(),
        findings=plan.findings(),
        seconds=time.perf_counter() - start,
    )


def compile_model(job: CompileJob, progress: Progress = silent) -> CompileReport:
    """MLC's ``compile`` for an artifact directory of ours or of MLC's."""
    register()
    from mlc_llm.interface.compile import compile as run
    from mlc_llm.interface.compiler_flags import ModelConfigOverride, OptimizationFlags
    from mlc_llm.support.auto_target import detect_target_and_host

    start = time.perf_counter()
    chat = ChatConfig.load(job.model_dir)
    _refuse_split(chat.arch_config)
    output = Path(job.output or Path(job.model_dir) / "lib.so")
    progress("compile", 0, 1)
    with _translated(job):
        target, build = detect_target_and_host(job.target or job.device)
        run(
            config=json.loads(chat.model_dump_json(by_alias=True)),
            quantization=_their_scheme(chat.quantization),
            model_type=_their_model(chat.model_type),
            target=target,
            opt=OptimizationFlags.from_str(
                job.opt or ("O2" if target.kind.name == "cuda" else "O0")
            ),
            build_func=build,
            system_lib_prefix="",
            output=output,
            overrides=ModelConfigOverride(
                context_window_size=job.context_window_size,
                prefill_chunk_size=job.prefill_chunk_size,
                max_batch_size=job.max_batch_size,
            ),
            debug_dump=Path(job.dump) if job.dump else None,
        )
    progress("compile", 1, 1)
    return CompileReport(
        path=output,
        target=str(target),
        size=output.stat().st_size,
        seconds=time.perf_counter() - start,
        memory_usage={},
        fingerprint=_lib_fingerprint(chat),
        cached=False,
    )


def calibrate(job: CalibrateJob, progress: Progress = silent) -> CalibrateReport:
    """MLC's ``calibrate``: running maximum over sampled generations; it tells no statistics.

    MLC edits shards in place, so it works on a copy, which becomes ``job.output`` at the end.
    """
    register()
    from mlc_llm.interface.calibrate import calibrate as run

    start, output = time.perf_counter(), Path(job.output)
    if output.resolve() == Path(job.model_dir).resolve():
        raise ConfigError("the output must differ from the model directory", where=output)
    progress("calibrate", 0, 1)
    with _published(output, (CONFIG_NAME, *COPIED, *WRITTEN), INDEX) as made, _translated(job):
        _copy_model(Path(job.model_dir), made)
        run(
            model=str(made),
            device=job.device,
            model_lib=str(job.model_lib or Path(job.model_dir) / "lib.so"),
            dataset=str(job.dataset),
            output=str(made),
            num_calibration_samples=job.num_calibration_samples,
            seed=job.seed,
        )
        chat = ChatConfig.load(made)
        final = chat.quantization.removesuffix("_max_calibrate")
        chat.model_copy(update={"quantization": final}).save(made)
    progress("calibrate", 1, 1)
    seconds = time.perf_counter() - start
    return CalibrateReport(output, "max", job.num_calibration_samples, 0, (), (), None, seconds)


def _copy_model(model: Path, output: Path) -> None:
    """The files that make the model; whatever else lies there stays."""
    shards = {record.shard for record in read_index(model).records.values()}
    for name in (CONFIG_NAME, *COPIED, INDEX, *sorted(shards)):
        if (model / name).is_file():
            shutil.copyfile(model / name, output / name)


def main() -> None:
    """``mlc_llm`` with our entries in its tables."""
    try:
        added = register()
        print(f"mlc-bridge adds AWQ for {', '.join(added.awq_models) or 'nothing new'}; schemes "
              f"{', '.join(added.schemes) or 'none new'}", file=sys.stderr)  # fmt: skip
        from mlc_llm.__main__ import main as run
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.argv[0] = "mlc_llm"
    run()


@dataclass(frozen=True)
class Bound:
    """Stands where MLC has an ExternMapping: names the plan, or how to make it from a path."""

    plan: Recognised | None = None
    scheme: str = "auto"
    source: str = "auto"


class Loader:
    """MLC's loader interface over our sources: reads, stacks and encodes by the weight plan."""

    def __init__(self, path: Path, extern_param_map: Bound, quantize_param_map: Any = None) -> None:
        bound = extern_param_map
        self.plan = bound.plan or recognise(path.parent, path, bound.source, bound.scheme)
        self.stats = SimpleNamespace(total_param_num=self.plan.elements)

    def load(self, device: Any, preshard_funcs: Any = None) -> Iterator[tuple[str, Any]]:
        """(parameter name, device tensor), in the order of the weight table."""
        if preshard_funcs:
            raise ConfigError("weights cannot be sharded for several devices by this loader")
        import tvm

        for item in encoded(self.plan, Requantize()):
            for suffix, array in item.params.items():
                tensor = tvm.runtime.tensor(np.ascontiguousarray(array), device)
                yield item.weight.parameter(suffix), tensor


def _planner(arch: Arch, source: str) -> Callable[[Any, Any], Bound]:
    return lambda config, scheme: Bound(scheme=scheme.name, source=source)


def _reads_awq(config: Any) -> Any:
    """The config class without the quantization settings, of which qwen3's knows fp8 alone."""

    class Config(config):
        @classmethod
        def from_dict(cls, source: dict[str, Any]) -> Any:
            settings = source.get("quantization_config") or {}
            drop = {"quantization_config"} if settings.get("quant_method") == "awq" else set()
            return super().from_dict({k: v for k, v in source.items() if k not in drop})

    Config.__name__, Config.__qualname__ = config.__name__, config.__qualname__
    return Config


def _awq_map(arch: Arch) -> Callable[[Any, Any], Any]:
    """MLC's ExternMapping of an AutoAWQ checkpoint, from the weight table."""

    def mapping(model_config: Any, quantization: Any) -> Any:
        from mlc_llm.loader import ExternMapping

        config = arch.config({"model_config": model_config.asdict()})
        scheme = SCHEMES[quantization.name]
        found = ExternMapping()
        for weight in arch.weights(config):
            for name, parts, join in _awq_params(weight, scheme.quantizes):
                found.add_mapping(name, parts, join)
            for layer in weight.sources:
                found.add_unused(f"{layer.rsplit('.', 1)[0]}.rotary_emb.inv_freq")
        return found

    return mapping


def _awq_params(
    weight: Weight, quantizes: Callable[[Any], bool]
) -> Iterator[tuple[str, list[str], Callable[..., Array]]]:
    """(MLC name, tensors on disk, how they are joined) of one weight."""
    if weight.role == "plain":
        yield weight.path, [*weight.sources], lambda a: a.reshape(weight.shape).astype(np.float32)
        return
    packed = weight.tensor is None and quantizes(weight.role)
    parts = max(len(weight.rows), 1)
    for suffix in ("qweight", "qzeros", "scales") if packed else ("weight",):
        names = [f"{layer}.{suffix}" for layer in weight.sources]

        def join(*arrays: Array, packed: bool = packed, suffix: str = suffix) -> Array:
            axis = 1 if packed else 0  # AutoAWQ stores [k, n]
            cut = range(0, len(arrays), parts)
            each = [np.concatenate(arrays[i : i + parts], axis=axis) for i in cut]
            whole = np.stack(each) if weight.experts else each[0]
            if suffix in ("qweight", "qzeros"):
                return whole.view(np.uint32)
            return (whole + np.asarray(weight.offset, whole.dtype)).astype(np.float16)

        yield f"{weight.path}.{suffix}", names, join
    if weight.bias:
        names = [f"{layer}.bias" for layer in weight.sources]
        yield f"{weight.path}.bias", names, lambda *b: np.concatenate(b).astype(np.float16)


def _schemes() -> Iterator[Any]:
    """Our rows that MLC's own classes can describe."""
    from mlc_llm.quantization import AWQQuantize, GroupQuantize

    for scheme in SCHEMES.values():
        shared: dict[str, Any] = {"name": scheme.name, "storage_dtype": "uint32"}
        if isinstance(scheme, AutoAWQ) and scheme.group:
            yield AWQQuantize(
                kind="awq",
                group_size=scheme.group,
                quantize_dtype="int4",
                model_dtype=scheme.model_dtype,
                **shared,
            )
        elif isinstance(scheme, GroupQuant):
            yield GroupQuantize(
                kind="group-quant",
                group_size=scheme.group,
                quantize_dtype=f"int{scheme.bits}",
                model_dtype=scheme.model_dtype,
                linear_weight_layout="KN" if scheme.transposed else "NK",
                quantize_embedding=scheme.quantizes("embedding"),
                quantize_final_fc=scheme.quantizes("lm_head"),
                **shared,
            )


def _their_model(name: str) -> Any:
    from mlc_llm.model import MODELS as THEIRS

    if name not in THEIRS:
        raise ConfigError(f"MLC LLM has no architecture {name}", expected=", ".join(THEIRS))
    return THEIRS[name]


def _their_scheme(name: str) -> Any:
    from mlc_llm.quantization import QUANTIZATION

    if name not in QUANTIZATION:
        raise ConfigError(
            f"MLC LLM has no scheme {name}",
            expected=", ".join(QUANTIZATION),
            todo="Use --backend embedded, which has it",
        )
    return QUANTIZATION[name]


def _lib_fingerprint(chat: ChatConfig) -> str:
    from mlc_bridge.models.arch import parameters

    arch, scheme = MODELS[chat.model_type], SCHEMES[chat.quantization]
    config = arch.config(chat.arch_config)
    params = [
        (w.parameter(suffix), spec.shape, spec.dtype)
        for w in arch.weights(config)
        for suffix, spec in parameters(w, scheme, config).items()
    ]
    return fingerprint(arch.name, config.asdict(), params)


def _refuse_split(block: Mapping[str, Any]) -> None:
    """MLC's graphs know fused layers only whole, and one scheme for all."""
    if own := block.get("layer_schemes"):
        raise ConfigError(
            "MLC LLM cannot build a model whose layers are of several schemes",
            found=", ".join(f"{path}: {name}" for path, name in list(own.items())[:2]),
            todo="Use --backend embedded, which can",
        )
    if split := block.get("split_layers"):
        raise ConfigError(
            "MLC LLM cannot build a fused layer whose parts are stored differently",
            found=", ".join(split[:4]),
            todo="Use --backend embedded, which can",
        )


@contextmanager
def _staged(
    home: Path, arch: Arch, block: Mapping[str, Any], plan: Recognised | None = None
) -> Iterator[Path]:
    """Links to the checkpoint's files beside a config.json and an index as MLC wants them."""
    _refuse_split(block)
    with tempfile.TemporaryDirectory(prefix="mlc-bridge-") as folder:
        made = Path(folder)
        for file in home.iterdir():
            if file.is_file() and file.name != "config.json":
                (made / file.name).symlink_to(file.resolve())
        given = json.loads((home / "config.json").read_text("utf-8"))
        flat = {k: v for k, v in given.items() if k not in DROPPED}
        flat |= {"model_type": arch.name, **block}
        (made / "config.json").write_text(json.dumps(flat), encoding="utf-8")
        index = made / "model.safetensors.index.json"
        if plan is not None and not index.exists():
            names = {name: plan.ckpt.file_of(name).name for name in plan.ckpt.names}
            index.write_text(json.dumps({"weight_map": names}), encoding="utf-8")
        yield made


@contextmanager
def _published(output: Path, names: tuple[str, ...], last: str) -> Iterator[Path]:
    """A folder for MLC to write into; its files replace those of ``names`` when all are there."""
    with Workspace(output, names) as space:
        yield space.temp
        space.publish(last, stale=names)


@contextmanager
def _translated(job: Any) -> Iterator[None]:
    """What MLC raises on bad input, as one paragraph; defects keep their traceback as the cause."""
    try:
        yield
    except (BridgeError, KeyboardInterrupt):
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        raise CompileError(
            f"MLC LLM refused: {said[-1] if said else type(error).__name__}",
            where=job.model_dir,
            todo="Try --backend embedded, or --traceback for MLC's own words",
        ) from error


def _mlc_llm() -> Any:
    try:
        import mlc_llm
    except ImportError:
        raise MissingDependency("mlc_llm", "working with MLC LLM", INSTALL) from None
    return mlc_llm


if __name__ == "__main__":
    main()

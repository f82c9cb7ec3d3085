"""``build``: gen-config, convert and compile in one go, published as one directory.

The one stage that calls others: it is their composition and adds no work of its own. All of them
write into a hidden folder of the output, whose files are moved in when everything is there
(``artifact/workspace.py``); a run that fails or is killed leaves the output as it was. From first
to last a second run on the same output is refused. The config stage comes first and is quick, so
the plan (format found, scheme, template, sizes) is known before the long work starts.

FP8 with activation scales (``e4m3_e4m3_f16``) from a checkpoint that brings none takes a detour:
gen-config, convert and compile in the calibrating form, ``calibrate``, then compile the result.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from mlc_bridge.artifact.chat_config import CONFIG_NAME
from mlc_bridge.artifact.inventory import INDEX, LIB_NAME
from mlc_bridge.artifact.tensor_cache import WRITTEN, read_index
from mlc_bridge.artifact.tokenizer_files import COPIED
from mlc_bridge.artifact.workspace import Workspace, refuse_overlap
from mlc_bridge.errors import ArtifactError, BridgeError, ConfigError
from mlc_bridge.record import Record
from mlc_bridge.stages import wishes
from mlc_bridge.stages.build_plan import BuildPlan, build_plan
from mlc_bridge.stages.calibrate import (
    CALIBRATED,
    CALIBRATING,
    SUFFIX,
    CalibrateJob,
    CalibrateReport,
    calibrate,
)
from mlc_bridge.stages.calibration_report import HTML_NAME, REPORTS
from mlc_bridge.stages.compile import (
    CompileJob,
    CompileReport,
    check_toolchain,
    compile_model,
)
from mlc_bridge.stages.convert_weight import (
    ConvertJob,
    ConvertReport,
    convert_weight,
    plan_weights,
)
from mlc_bridge.stages.door import door
from mlc_bridge.stages.gen_config import GenConfigJob, GenConfigReport, gen_config
from mlc_bridge.stages.history import remember
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.quantize import QuantizeJob, QuantizeReport, quantize
from mlc_bridge.stages.recognise import Recognised

MODEL_FILES = (CONFIG_NAME, LIB_NAME, *COPIED, *WRITTEN, *REPORTS)
T = TypeVar("T")


@dataclass(frozen=True)
class BuildJob(Record):
    """The three stages' wishes; see ``GenConfigJob``, ``ConvertJob`` and ``CompileJob``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model_dir: wishes.CheckpointPath
    output: wishes.Output
    quantization: wishes.Quantization = "auto"
    conv_template: wishes.ConvTemplate = "auto"
    source: wishes.SourceWeights = None
    source_format: wishes.SourceFormat = "auto"
    requantize: wishes.Requantize = False
    device: wishes.TargetDevice = "auto"
    target: wishes.Target = None
    host: wishes.Host = "auto"
    opt: wishes.Opt = None
    context_window_size: wishes.ContextWindow = None
    sliding_window_size: wishes.SlidingWindow = None
    prefill_chunk_size: wishes.PrefillChunk = None
    attention_sink_size: wishes.AttentionSink = None
    max_batch_size: wishes.MaxBatch = None
    recipe: Annotated[
        str | None, "Quantize a float checkpoint first: a recipe as quantize takes it."
    ] = None
    calibration_dataset: Annotated[
        str | None,
        "Data for --recipe, or for FP8 activation scales: ShareGPT JSON, JSONL or plain text.",
    ] = None
    num_calibration_samples: wishes.Samples = 16
    backend: Annotated[str, "embedded, or mlc_llm: MLC LLM's own tools."] = "embedded"
    cache: wishes.KeepLibs = True

    @classmethod
    def from_recipe(cls, recipe: str | Path | None, **given: Any) -> BuildJob:
        """A job from a YAML file of this class's fields; ``given`` wins over the file.

        Raises ``ConfigError`` naming the key at fault.
        """
        values = {**_read_recipe(Path(recipe)), **given} if recipe is not None else given
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"{key}: {first['msg'].lower()}",
                where=recipe or "build",
                expected="keys " + ", ".join(f.name for f in fields(cls))
                if first["type"] == "unexpected_keyword_argument"
                else None,
            ) from error


@dataclass(frozen=True)
class BuildReport(Record):
    """The reports of the stages and what they cost: ``times`` in seconds by stage."""

    output: Annotated[Path, "Directory written."]
    plan: Annotated[BuildPlan, "What was announced before the long work."]
    config: Annotated[GenConfigReport, "Report of gen-config."]
    convert: Annotated[ConvertReport, "Report of convert."]
    compile: Annotated[CompileReport, "Report of compile."]
    calibrate: Annotated[CalibrateReport | None, "Report of calibrate, where there was data."]
    quantize: Annotated[QuantizeReport | None, "Report of quantize, where there was a recipe."]
    times: Annotated[dict[str, float], "Seconds by stage."]


@door
def build(
    job: BuildJob,
    progress: Progress = silent,
    announce: Callable[[BuildPlan], None] = lambda plan: None,
) -> BuildReport:
    """Build ``job.output``; ``announce`` gets the plan before the long work starts.

    Raises what the stages raise, and ``ArtifactError`` when the output is another kind of
    directory; the output is then as it was.
    """
    times: dict[str, float] = {}
    _check_wishes(job)
    with _published(job) as work:
        quantized = _quantized(job, work, times, progress)
        if quantized is not None:
            job = replace(job, model_dir=quantized.output, recipe=None, calibration_dataset=None)
        first = work / "calibrating" if job.calibration_dataset else work
        config, converted, told = _weights(job, first, times, progress, announce)
        calibrated = None
        if job.calibration_dataset:
            calibrated = _calibrate(job, first, work, times, progress)
            shutil.rmtree(first)
        _check_scales(work)
        with _timed(times, "compile"):
            compiled = _compile(job, work, progress)
    measured = {k: v for k, v in times.items() if not (k == "compile" and compiled.cached)}
    remember(told.model_type, told.quantization, told.nbytes, measured)
    return BuildReport(
        **_at_home(job, plan=told, config=config, convert=converted, compile=compiled,
                   calibrate=calibrated, quantize=quantized),
        times=times,
    )  # fmt: skip


def _quantized(
    job: BuildJob, work: Path, times: dict[str, float], progress: Progress
) -> QuantizeReport | None:
    """The checkpoint of ``job.recipe`` in a folder that vanishes with the others."""
    if job.recipe is None:
        return None
    wish = QuantizeJob(job.model_dir, work / "quantized", job.recipe, job.calibration_dataset)
    with _timed(times, "quantize"):
        return quantize(wish, progress)


def plan(job: BuildJob, progress: Progress = silent) -> BuildPlan:
    """What ``build`` would do, and all that it would refuse before its long work.

    Nothing is written at the output. Raises what ``build`` raises.
    """
    _check_wishes(job)
    if job.recipe is not None:
        raise ConfigError("what a recipe makes is known when it has run", where="--dry-run",
                          todo="Run quantize, then build --dry-run on what it wrote")  # fmt: skip
    refuse_overlap(Path(job.output), job.model_dir, job.source)
    with tempfile.TemporaryDirectory(prefix="mlc-bridge-plan-") as work:
        return _planned(job, Path(work), {}, progress)[2]


def verdict(model_dir: str | Path, source_format: str = "auto") -> str:
    """What ``build`` would do with a checkpoint, in one line."""
    nowhere = Path(tempfile.gettempdir()) / "mlc-bridge-nowhere"
    try:
        found = plan(BuildJob(model_dir, nowhere, source_format=source_format))
    except BridgeError as error:
        return f"build would refuse: {error}"
    template = f"template {found.conv_template}"
    if found.prompts_proven_equal:
        template += f" proven on {found.prompts_proven_equal} prompts"
    size = f"{found.nbytes / 1e9:.2f} GB" if found.nbytes > 1e9 else f"{found.nbytes / 1e6:.1f} MB"
    return f"build would take {found.quantization}, exact; {template}; {size}"


def _at_home(job: BuildJob, **reports: Any) -> dict[str, Any]:
    """The reports with the paths that are true after publication."""
    output = Path(job.output)
    places = {"config": {"output": output}, "convert": {"output": output},
              "compile": {"path": output / LIB_NAME},
              "calibrate": {"output": output, "page": output / HTML_NAME}}  # fmt: skip
    moved = {
        name: replace(report, **places[name]) if report is not None and name in places else report
        for name, report in reports.items()
    }
    return {"output": output, **moved}


def _check_wishes(job: BuildJob) -> None:
    """What would else end a build late."""
    if job.calibration_dataset and job.quantization != CALIBRATED and job.recipe is None:
        raise ConfigError(
            "--calibration-dataset is of no use to this scheme",
            found=job.quantization,
            expected=CALIBRATED,
            todo="Leave it out, or name that scheme with --quantization",
        )
    if job.backend in (None, "embedded"):
        check_toolchain(job.device, job.target, job.host)


def _weights(
    job: BuildJob,
    work: Path,
    times: dict[str, float],
    progress: Progress,
    announce: Callable[[BuildPlan], None],
) -> tuple[GenConfigReport, ConvertReport, BuildPlan]:
    """Config and weights, with the plan announced between the two."""
    config, convert, told = _planned(job, work, times, progress)
    announce(told)
    with _timed(times, "convert"):
        converted = by_backend(job.backend, convert_weight)(convert, progress)
    return config, converted, told


def _planned(
    job: BuildJob, work: Path, times: dict[str, float], progress: Progress
) -> tuple[GenConfigReport, ConvertJob, BuildPlan]:
    """The config, what is to be converted, and the plan."""
    scheme = CALIBRATING if job.calibration_dataset else job.quantization
    with _timed(times, "gen-config"):
        wish = _part(GenConfigJob, job, output=work, quantization=scheme)
        config = by_backend(job.backend, gen_config)(wish, progress)
        convert = _part(ConvertJob, job, output=work, quantization=scheme)
        found = plan_weights(convert)
        _check_dataset(job, found)
        told = build_plan(Path(job.output), job.target or job.device, config, found)
    return config, convert, told


def _calibrate(
    job: BuildJob, weights: Path, output: Path, times: dict[str, float], progress: Progress
) -> CalibrateReport:
    """From calibrating weights to calibrated ones, by way of a lib of their own."""
    with _timed(times, "calibrate"):
        lib = _compile(job, weights, progress)
        return calibrate(
            CalibrateJob(
                model_dir=weights,
                output=output,
                dataset=str(job.calibration_dataset),
                model_lib=lib.path,
                num_calibration_samples=job.num_calibration_samples,
                device=job.device,
            ),
            progress,
        )


def _compile(job: BuildJob, work: Path, progress: Progress) -> CompileReport:
    wish = _part(CompileJob, job, model_dir=work, output=work / LIB_NAME, quantization=None)
    return by_backend(job.backend, compile_model)(wish, progress)


def _check_dataset(job: BuildJob, plan: Recognised) -> None:
    """A float checkpoint has no activation scales: say so before the long work."""
    unfilled = any(spec.filled_by == "calibrate" for spec in plan.specs.values())
    if unfilled and not job.calibration_dataset and not plan.source.layers(plan.ckpt):
        raise _uncalibrated(plan.scheme.name, "a float checkpoint has none")


def _check_scales(work: Path) -> None:
    cache = read_index(work)
    for name in cache.records:
        if name.endswith(SUFFIX) and not np.isfinite(cache.array(name)).all():
            raise _uncalibrated(CALIBRATED, f"the checkpoint has none for {name}")


def _uncalibrated(scheme: str, why: str) -> ConfigError:
    return ConfigError(
        f"{scheme} needs activation scales, and {why}",
        todo="Give --calibration-dataset FILE, or choose e5m2_e5m2_f16, which needs none",
    )


def by_backend(backend: str | None, stage: Callable[..., T]) -> Callable[..., T]:
    """``stage`` itself, or the one of the same name that drives MLC LLM (``mlc_llm``)."""
    if backend in (None, "embedded"):
        return stage
    if backend != "mlc_llm":
        raise ConfigError("unknown backend", found=repr(backend), expected="embedded or mlc_llm")
    from mlc_bridge import upstream

    found: Callable[..., T] = getattr(upstream, stage.__name__)
    return found


def _part(kind: Any, job: BuildJob, **other: Any) -> Any:
    """A stage's job: the fields it shares with ``job``, and ``other``."""
    own = {f.name for f in fields(job)}
    shared = {f.name: getattr(job, f.name) for f in fields(kind) if f.name in own}
    return kind(**{**shared, **other})


@contextmanager
def _timed(times: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[stage] = time.perf_counter() - start


@contextmanager
def _published(job: BuildJob) -> Iterator[Path]:
    """A folder whose files become those of the output if the block succeeds."""
    output = Path(job.output)
    refuse_overlap(output, job.model_dir, job.source)
    with Workspace(output, MODEL_FILES) as space:
        if not space.inventory.files and any(map(_visible, space.directory.iterdir())):
            raise ArtifactError(
                "holds other things than an MLC model and is not overwritten",
                where=output,
                todo="Name an empty or new directory with -o",
            )
        try:
            yield space.temp
        except BridgeError as error:  # name the directory that the user knows
            error.args = (str(error).replace(str(space.temp), str(output)),)
            raise
        space.publish(INDEX, stale="*")


def _visible(path: Path) -> bool:
    """Not hidden, nor what every new file system holds."""
    return not path.name.startswith(".") and path.name != "lost+found"


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such recipe", where=path) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read as YAML: {error}", where=path) from error
    if not isinstance(found, dict):
        raise ConfigError("must hold key: value lines", where=path)
    return {str(key): value for key, value in found.items()}

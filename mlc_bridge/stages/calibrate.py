"""Stage ``calibrate``: scales of the activations of an FP8 model, in a new model directory.

    weights without activation scales  +  lib of e4m3_e4m3_f16_max_calibrate  +  data
        ->  the same weights with every ``q_calibration_scale``, as e4m3_e4m3_f16

The source directory is only read. Everything new is written to ``output``: tokenizer files, config,
report, weights (float32 scales exactly, as ``raw`` records), the index last. Until then ``output``
holds at most hidden files: a lock's folder, and a state from which the same command goes on after
an interruption.

``observer`` reads the scale off what was seen (see ``observers.py``); all of them stand side by
side in the report. A layer that was never reached, or saw infinities, ends the run with an error
that names it: no scale is ever made up.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.tensor_cache import INDEX, WRITTEN, ShardWriter, TensorCache, read_index
from mlc_bridge.artifact.tokenizer_files import COPIED
from mlc_bridge.artifact.workspace import Workspace
from mlc_bridge.engine.library import find_library
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.threads import start_pool
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.errors import ArtifactError, ConfigError
from mlc_bridge.record import Record
from mlc_bridge.stages import wishes
from mlc_bridge.stages.calibration_data import Sample, draw, read_records, tokenize
from mlc_bridge.stages.calibration_report import (
    HTML_NAME,
    REPORTS,
    LayerReport,
    write_report,
)
from mlc_bridge.stages.calibration_run import (
    Generation,
    Mode,
    Observation,
    Run,
    in_own_thread,
    observing,
)
from mlc_bridge.stages.certificate import inherited
from mlc_bridge.stages.door import door
from mlc_bridge.stages.located import located
from mlc_bridge.stages.observers import OBSERVERS, Fit, Histogram, fit, scale_of
from mlc_bridge.stages.progress import Progress, silent

CALIBRATED = "e4m3_e4m3_f16"
CALIBRATING = "e4m3_e4m3_f16_max_calibrate"
SUFFIX = ".q_calibration_scale"
STATE = ".calibration-state.npz"
WRITES = (CONFIG_NAME, *COPIED, *REPORTS, *WRITTEN)


@dataclass(frozen=True)
class CalibrateJob(Record):
    """``model_lib`` is the lib compiled for calibration; ``dataset`` see ``calibration_data.py``.

    ``mode``: "forced" runs prompts and given answers (fast), "generate" lets the model answer.
    ``observer``: "max", "percentile" or "mse".
    """

    model_dir: wishes.ArtifactPath
    output: wishes.Output
    dataset: Annotated[str | Path, "Calibration data: ShareGPT JSON, JSONL or plain text."]
    model_lib: Annotated[
        str | Path | None, "Library compiled for calibration; default is lib.so of the directory."
    ] = None
    num_calibration_samples: wishes.Samples = 16
    device: wishes.RunDevice = "auto"
    seed: Annotated[int, "Seed of all randomness."] = 0
    mode: Annotated[
        Mode, "forced runs prompts with their answers; generate lets the model answer."
    ] = "forced"
    observer: Annotated[str, "How to read the scale off what was seen: max, percentile, mse."] = (
        "max"
    )


@dataclass(frozen=True)
class CalibrateReport(Record):
    """What was written: ``layers`` in the order of the weights; ``page`` is the HTML report."""

    output: Annotated[Path, "Directory written."]
    observer: Annotated[str, "How scales were read off."]
    samples: Annotated[int, "Samples that were run."]
    tokens: Annotated[int, "Tokens that were run."]
    layers: Annotated[tuple[LayerReport, ...], "Every layer, in the order of the weights."]
    findings: Annotated[tuple[str, ...], "What the user should know."]
    page: Annotated[Path | None, "The same as an HTML page."]
    seconds: Annotated[float, "Time it took."]


@dataclass(frozen=True)
class Plan:
    """Everything checked before the first token runs."""

    job: CalibrateJob
    chat: ChatConfig
    weights: TensorCache
    lib: Path
    layers: tuple[str, ...]
    samples: tuple[Sample, ...]
    findings: tuple[str, ...]

    @property
    def output(self) -> Path:
        return Path(self.job.output)

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)


@door
def calibrate(job: CalibrateJob, progress: Progress = silent) -> CalibrateReport:
    """Calibrate ``job.model_dir`` into ``job.output``.

    Raises ConfigError for job and data, ArtifactError for weights and lib, and for a layer without
    usable inputs; the output then holds no model.
    """
    start = time.perf_counter()
    plan = _plan(located(job))
    with Workspace(plan.output, WRITES) as space:
        report = _calibrated(plan, progress, start)
        _write(plan, report, space.temp)
        space.more.update(inherited(Path(plan.job.model_dir)))
        space.publish(INDEX, stale=WRITES)
    (plan.output / STATE).unlink(missing_ok=True)
    return report


def _calibrated(plan: Plan, progress: Progress, start: float) -> CalibrateReport:
    job, seen = plan.job, _observe(plan, progress)
    layers = tuple(_layer_report(name, seen, job.observer) for name in plan.layers)
    wrong = tuple(f"{layer.layer}: {layer.wrong}" for layer in layers if layer.wrong)
    return CalibrateReport(
        output=plan.output,
        observer=job.observer,
        samples=len(plan.samples),
        tokens=plan.tokens,
        layers=layers,
        findings=(*plan.findings, *wrong),
        page=plan.output / HTML_NAME,
        seconds=time.perf_counter() - start,
    )


def _plan(job: CalibrateJob) -> Plan:
    model, output = Path(job.model_dir), Path(job.output)
    chat = ChatConfig.load(model)
    _check_scheme(chat.quantization, model)
    if job.observer not in OBSERVERS or job.mode not in ("forced", "generate"):
        raise ConfigError(
            "unknown observer or mode",
            found=f"{job.observer}, {job.mode}",
            expected=f"{', '.join(OBSERVERS)}; forced, generate",
        )
    if job.num_calibration_samples < 1:
        raise ConfigError("calibration needs samples", found=job.num_calibration_samples)
    if output.exists() and output.samefile(model):
        raise ConfigError(
            "calibration writes a new model directory",
            where=output,
            found="the model's own directory as output",
            todo="Choose another output",
        )
    weights = read_index(model)
    layers = tuple(n.removesuffix(".q_scale") for n in weights.records if n.endswith(".q_scale"))
    samples, findings = _samples(job, chat)
    lib = find_library(model, job.model_lib)
    return Plan(job, chat, weights, lib, layers, samples, findings)


def _check_scheme(name: str, model: Path) -> None:
    if name in (CALIBRATED, CALIBRATING):
        return
    free = name.startswith("e5m2")
    raise ConfigError(
        f"{name} needs no calibration" + (": its activations have no scale" if free else ""),
        where=model,
        expected=f"{CALIBRATED} or {CALIBRATING}",
        todo="Use the model as it is",
    )


def _samples(job: CalibrateJob, chat: ChatConfig) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    records = read_records(job.dataset)
    chosen = draw(records, job.num_calibration_samples, job.seed)
    encode = Tokenizer(Path(job.model_dir), chat.tokenizer_info).encode
    limit = chat.context_window_size if chat.context_window_size > 0 else chat.sliding_window_size
    read = [tokenize(record, chat.conv_template, encode, limit) for record in chosen]
    samples = tuple(s for s in read if s is not None and s.ids)
    if not samples:
        raise ConfigError("no record of the data set fits the model's chat template",
                          where=job.dataset)  # fmt: skip
    findings = []
    if len(records) < job.num_calibration_samples:
        findings.append(f"the data set has only {len(records)} records; all were used")
    if len(samples) < len(chosen):
        findings.append(f"{len(chosen) - len(samples)} records do not fit the chat template")
    return samples, tuple(findings)


def _observe(plan: Plan, progress: Progress) -> dict[str, Histogram]:
    job, observation = plan.job, Observation()

    def work(stop: threading.Event) -> None:
        start_pool()
        with observing(observation):
            runtime = Runtime.open(job.model_dir, plan.lib, device=job.device)
        _check_lib(runtime, plan)
        state = plan.output / STATE
        run = Run(runtime, plan.samples, observation, _generation(plan), state, _key(plan))
        run(progress, stop)

    in_own_thread(work)
    return observation.layers


def _check_lib(runtime: Runtime, plan: Plan) -> None:
    found = runtime.library.metadata["quantization"]
    if found != CALIBRATING:
        raise ArtifactError(
            "this lib was not compiled for calibration",
            where=plan.lib,
            found=found,
            expected=CALIBRATING,
            todo=f"Run gen-config and compile with --quantization {CALIBRATING}",
        )


def _generation(plan: Plan) -> Generation | None:
    if plan.job.mode == "forced":
        return None
    chat = plan.chat
    return Generation(
        temperature=1.0 if chat.temperature is None else chat.temperature,
        top_p=1.0 if chat.top_p is None else chat.top_p,
        seed=plan.job.seed,
        stop=frozenset(chat.conv_template.stop_token_ids or ()),
    )


def _key(plan: Plan) -> str:
    """Hash of everything the counts depend on: a saved state of another run is not taken up."""
    job = plan.job
    with plan.lib.open("rb") as file:
        lib = hashlib.file_digest(file, "sha256").hexdigest()
    shards = sorted({plan.weights.directory / r.shard for r in plan.weights.records.values()})
    files = [(s.name, s.stat().st_size, s.stat().st_mtime_ns) for s in shards]
    ids = [sample.ids for sample in plan.samples]
    text = json.dumps([job.mode, job.seed, job.device, lib, files, ids])
    return hashlib.sha256(text.encode()).hexdigest()


def _layer_report(name: str, seen: Mapping[str, Histogram], observer: str) -> LayerReport:
    histogram = seen.get(name)
    if histogram is None or histogram.nonfinite:
        found = "never" if histogram is None else f"{histogram.nonfinite} infinite or NaN inputs"
        raise ArtifactError(
            "no activation scale can be measured for this layer", where=name, found=found,
            todo="The model does not compute what it should; check weights and data",
        )  # fmt: skip
    fits = {key: fit(histogram, scale_of(histogram, key)) for key in OBSERVERS}
    amax, chosen = float(histogram.amax), fits[observer]
    return LayerReport(name, histogram.total, amax, chosen, fits, _verdict(amax, chosen))


def _verdict(amax: float, chosen: Fit) -> str:
    if amax == 0:
        return "dead: all its inputs are 0"
    if amax > float(np.finfo(np.float16).max) / 4:
        return f"exploding: inputs up to {amax:.4g} come near float16's limit"
    if chosen.saturated > 0.01:
        return f"{chosen.saturated:.2%} of its inputs saturate"
    if chosen.vanished > 0.5:
        return f"{chosen.vanished:.0%} of its inputs become 0"
    return ""


def _write(plan: Plan, report: CalibrateReport, folder: Path) -> None:
    scales = {layer.layer + SUFFIX: layer.chosen.scale for layer in report.layers}
    metadata = dict(plan.weights.metadata)
    with ShardWriter(folder, metadata) as writer:
        for name in _order(plan.weights, report.layers):
            value = scales.get(name)
            writer.add(name, plan.weights.array(name) if value is None else _scalar(value))
        _count_again(writer, plan.weights)
    _copy_files(plan, folder)
    write_report(folder, _facts(plan, report), report.layers)


def _order(weights: TensorCache, layers: Sequence[LayerReport]) -> list[str]:
    """The names of the weights; a layer's activation scale follows its weight scale."""
    names = [name for name in weights.records if not name.endswith(SUFFIX)]
    measured = {layer.layer for layer in layers}
    out = []
    for name in names:
        out.append(name)
        layer = name.removesuffix(".q_scale")
        if layer != name and layer in measured:
            out.append(layer + SUFFIX)
    return out


def _scalar(value: float) -> Any:
    return np.array([value], np.float32)


def _count_again(writer: ShardWriter, weights: TensorCache) -> None:
    """MLC's totals; the number of logical weights is what the old totals imply."""
    old = weights.metadata
    writer.metadata.update(ParamSize=len(writer.records), ParamBytes=float(writer.nbytes))
    if old.get("BitsPerParam"):
        count = float(old["ParamBytes"]) * 8 / float(old["BitsPerParam"])
        writer.metadata["BitsPerParam"] = writer.nbytes * 8 / count


def _copy_files(plan: Plan, folder: Path) -> None:
    model = Path(plan.job.model_dir)
    try:
        for name in COPIED:
            if (model / name).is_file():
                shutil.copyfile(model / name, folder / name)
    except OSError as problem:
        raise ArtifactError(f"cannot be written ({problem.strerror})", where=plan.output) from None
    plan.chat.model_copy(update={"quantization": CALIBRATED}).save(folder)


def _facts(plan: Plan, report: CalibrateReport) -> dict[str, Any]:
    job = plan.job
    return {
        "model": str(job.model_dir),
        "dataset": str(job.dataset),
        "samples": report.samples,
        "tokens": report.tokens,
        "seed": job.seed,
        "mode": job.mode,
        "observer": job.observer,
        "findings": list(report.findings),
    }

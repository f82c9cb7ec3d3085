"""Stage ``quantize``: a float checkpoint and a recipe -> a quantized checkpoint on disk.

What is written is a checkpoint like any other: ``build`` lands it exactly, and the tool that owns
the format reads it. Everything is planned and checked from headers first; then one decoder layer at
a time is read, rounded and kept (``quantizers/loop.py``) in a hidden folder of the output, from
which a killed run goes on; the files move in when all are there, config.json last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from mlc_bridge.artifact.tokenizer_files import COPIED, TokenizerFiles
from mlc_bridge.artifact.workspace import Workspace, refuse_overlap, told
from mlc_bridge.errors import ConfigError, SourceError
from mlc_bridge.quantizers import loop, tensor_file
from mlc_bridge.quantizers.keep import kept
from mlc_bridge.quantizers.layer_report import LayerReport
from mlc_bridge.quantizers.msmodelslim import OPTIONS
from mlc_bridge.quantizers.outputs import OUTPUTS
from mlc_bridge.quantizers.read_recipe import read_recipe
from mlc_bridge.quantizers.recipe import Recipe
from mlc_bridge.record import Record
from mlc_bridge.sources import Checkpoint
from mlc_bridge.stages import wishes
from mlc_bridge.stages.door import door
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.quantize_report import REPORTS, write_report
from mlc_bridge.stages.quantize_texts import texts, windows
from mlc_bridge.stages.recognise import Surveyed, detected, open_checkpoint, survey

CONFIG = "config.json"
WORK = ".mlc-bridge-quantize"
OPTION_HELP = {name: f"msModelSlim's: {text}" for name, (_, text) in OPTIONS.items()}
WRITES = (
    CONFIG, "generation_config.json", "quant_model_description*.json", *COPIED, *REPORTS,
    "model*.safetensors", "model.safetensors.index.json", "quant_model_weight*",
)  # fmt: skip


@dataclass(frozen=True)
class QuantizeJob(Record):
    """``options``: msModelSlim's, by their own names; they take the place of ``recipe``."""

    model_dir: Annotated[str | Path, "Float checkpoint: directory, or hub id org/name."]
    output: wishes.Output
    recipe: Annotated[
        str | Path | None, "A short name (awq-w4a16-g128), LLMC's YAML, or a recipe as JSON."
    ] = None
    dataset: Annotated[
        str | Path | None, "Calibration data: ShareGPT JSON, JSONL or plain text."
    ] = None
    num_calibration_samples: Annotated[int | None, "Samples; default is the recipe's."] = None
    calibration_length: Annotated[int | None, "Tokens a sample; default is the recipe's."] = None
    heldout: Annotated[
        str | Path | None, "Text to measure perplexity and KL on, before and after."
    ] = None
    output_format: Annotated[str | None, "Format to write; default is the recipe's."] = None
    seed: Annotated[int | None, "Seed of the samples drawn; default is the recipe's."] = None
    report: Annotated[bool, "Write quantize.html and quantize.json beside the weights."] = False
    options: Annotated[
        Mapping[str, str], "msModelSlim's options by their own names, in place of a recipe."
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizeReport(Record):
    """What was written, and what rounding did to each layer."""

    output: Annotated[Path, "Directory written."]
    recipe: Annotated[Mapping[str, Any], "The recipe in full."]
    format: Annotated[str, "Format written."]
    files: Annotated[tuple[str, ...], "Weight files."]
    layers: Annotated[tuple[LayerReport, ...], "Every quantized layer."]
    float_layers: Annotated[tuple[str, ...], "Linear layers left in float."]
    samples: Annotated[int, "Calibration samples."]
    tokens: Annotated[int, "Calibration tokens."]
    measured: Annotated[Mapping[str, float], "Perplexity before and after, KL, on the held-out."]
    nbytes: Annotated[int, "Bytes of the weight files."]
    checkpoint_nbytes: Annotated[int, "Bytes of the float weights."]
    notes: Annotated[tuple[str, ...], "What the user should know."]
    seconds: Annotated[float, "Time it took."]


@dataclass(frozen=True)
class Plan:
    """Everything decided and checked before the long work."""

    job: QuantizeJob
    recipe: Recipe
    work: loop.Work
    tokenizer: TokenizerFiles
    notes: tuple[str, ...]


@door
def quantize(job: QuantizeJob, progress: Progress = silent) -> QuantizeReport:
    """Quantize ``job.model_dir`` into ``job.output``.

    Raises ConfigError for recipe and data, SourceError for the checkpoint, ArtifactError when the
    output cannot be written; the output then holds no model.
    """
    start = time.perf_counter()
    plan = _plan(job)
    output = Path(job.output)
    output = output / plan.recipe.output.folder if plan.recipe.output.folder else output
    refuse_overlap(output, job.model_dir)
    parts = output / WORK / "parts"

    def goes_on() -> bool:
        return loop.continues(parts, plan.work.key)

    with Workspace(output, WRITES, folder=WORK, goes_on=goes_on) as space:
        space.keep = True
        try:
            with told(output):
                done = loop.run(plan.work, space.temp / "parts", progress)
        except (ConfigError, SourceError):
            space.keep = False
            raise
        with told(output):
            report = _written(plan, done, space, output, start)
        space.publish(CONFIG, stale=WRITES)
    return report


def _written(
    plan: Plan, done: loop.Done, space: Workspace, output: Path, start: float
) -> QuantizeReport:
    """All files of the checkpoint into the workspace."""
    recipe, ckpt, temp = plan.recipe, plan.work.ckpt, space.temp
    form = OUTPUTS[recipe.output.format]
    stem = form.stem(recipe)
    files = tensor_file.assemble(done.parts, temp, stem, recipe.output.shard_bytes)
    names = Checkpoint.open(temp / files[-1], temp).names
    quantized = [layer.layer for layer in done.layers]
    for name, text in form.described(recipe, names, quantized).items():
        (temp / name).write_text(text, "utf-8")
    plan.tokenizer.write(temp)
    generation = ckpt.path / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, temp / generation.name)
    config = {**ckpt.config, **({"tie_word_embeddings": False} if recipe.rotations else {})}
    settings = form.settings(recipe, sorted(done.floats), config)
    (temp / CONFIG).write_text(json.dumps(settings, indent=2), "utf-8")
    found = QuantizeReport(
        output=output,
        recipe=recipe.model_dump(mode="json"),
        format=form.name,
        files=tuple(files),
        layers=tuple(done.layers),
        float_layers=tuple(sorted(done.floats)),
        samples=len(plan.work.samples),
        tokens=sum(len(s) for s in plan.work.samples),
        measured=dict(done.measured),
        nbytes=sum((temp / f).stat().st_size for f in files),
        checkpoint_nbytes=sum(e.nbytes for e in ckpt.entries.values()),
        notes=plan.notes,
        seconds=time.perf_counter() - start,
    )
    if plan.job.report:
        write_report(temp, found)
    shutil.rmtree(temp / "parts")
    return found


def _plan(job: QuantizeJob) -> Plan:
    recipe, named = _recipe(job)
    OUTPUTS[recipe.output.format].check(recipe)
    ckpt, source = detected(open_checkpoint(job.model_dir))
    if source.name != "dense":
        raise ConfigError("this checkpoint is quantized already", where=job.model_dir,
                          found=source.name, expected="float weights")  # fmt: skip
    found = survey(ckpt, source)
    linears = _linears(found)
    floats = kept(recipe.keep, linears)
    tokenizer = TokenizerFiles.read(ckpt.path)
    notes = [*recipe.notes, *found.notes]
    samples: Sequence[Sequence[int]] = ()
    if recipe.needs_data:
        samples, told = texts(job.dataset or named, recipe.calibration, tokenizer)
        notes += told
    elif job.dataset is not None:
        notes.append("this recipe looks at no data: the data set was not read")
    held = windows(job.heldout, tokenizer) if job.heldout is not None else ()
    key = _key(recipe, ckpt, samples, held)
    work = loop.Work(ckpt, recipe, linears, floats, samples, held, key)
    return Plan(job, recipe, work, tokenizer, tuple(notes))


def _recipe(job: QuantizeJob) -> tuple[Recipe, str | None]:
    """The job's recipe with what the job says itself, and the data that a recipe names."""
    recipe, named = read_recipe(job.recipe, job.options)
    given = {
        "samples": job.num_calibration_samples,
        "length": job.calibration_length,
        "seed": job.seed,
    }
    calibration = {k: v for k, v in given.items() if v is not None}
    values = recipe.model_dump()
    values["calibration"] |= calibration
    if job.output_format is not None:
        values["output"] |= {"format": job.output_format, "folder": None}
    return Recipe.of(values, job.recipe or "quantize"), named


def _linears(found: Surveyed) -> frozenset[str]:
    """Checkpoint names of the matrices that may be quantized: linear layers and the head."""
    roles = ("linear", "lm_head")
    return frozenset(name for w in found.weights if w.role in roles for name in w.sources)


def _key(recipe: Recipe, ckpt: Checkpoint, *texts: Sequence[Sequence[int]]) -> str:
    """Hash of all that decides the bytes; of the weights their names, places and file times."""
    files = sorted({e.file for e in ckpt.entries.values()})
    stat = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    what = json.dumps([recipe.model_dump(mode="json"), stat, ckpt.config, texts], default=list)
    return hashlib.sha256(what.encode()).hexdigest()

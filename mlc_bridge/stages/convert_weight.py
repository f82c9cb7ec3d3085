"""Stage ``convert_weight``: checkpoint in, ``params_shard_*.bin`` and ``tensor-cache.json`` out.

First what the checkpoint is (``recognise.py``). Then the weights (``weight_encoding.py``), one
after the other. Last the publication (``artifact/tensor_cache.py``). An error or an
interruption at any moment leaves no half-written output; a run that was killed goes on at its last
finished shard (``resume.py``).

A weight is expressed exactly or the stage stops; ``requantize`` is the user's wish for the other
thing, and the report then says what it cost, layer by layer.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlc_bridge import __version__
from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.tensor_cache import ShardWriter
from mlc_bridge.artifact.workspace import WEIGHTS_WORK, refuse_overlap
from mlc_bridge.errors import ArtifactError
from mlc_bridge.packing import Array
from mlc_bridge.record import Record
from mlc_bridge.schemes import Spec
from mlc_bridge.stages import wishes
from mlc_bridge.stages.certificate import digests_of, made_from
from mlc_bridge.stages.door import door
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import Recognised, recognise
from mlc_bridge.stages.requantize import Requantize
from mlc_bridge.stages.resume import finished, job_key, told
from mlc_bridge.stages.weight_encoding import Encoded, LayerError, encoded

__all__ = [
    "ConvertJob",
    "ConvertReport",
    "LayerError",
    "convert_weight",
    "plan_weights",
]

MD5_BELOW = 256 << 20


@dataclass(frozen=True)
class ConvertJob(Record):
    """What to convert; ``source`` names weights that lie elsewhere than ``model_dir``'s config.

    ``md5``: write md5 sums, which MLC's downloader compares where they are (no runtime does). They
    cost three times the copy itself, so by default only small models get them (``MD5_BELOW``).
    """

    model_dir: wishes.CheckpointPath
    output: wishes.Output
    quantization: wishes.Quantization = "auto"
    source: wishes.SourceWeights = None
    source_format: wishes.SourceFormat = "auto"
    requantize: wishes.Requantize = False
    md5: Annotated[bool | None, "Write the shards' md5; by default only for small models."] = None


@dataclass(frozen=True)
class ConvertReport(Record):
    """What was written: ``sizes`` in bytes by kind of weight, ``weights`` in logical elements.

    ``checkpoint_nbytes``: the same weights as the checkpoint stores them.
    """

    output: Annotated[Path, "Directory written."]
    model_type: Annotated[str, "Architecture."]
    source_format: Annotated[str, "Format found in the checkpoint."]
    quantization: Annotated[str, "Scheme written."]
    fingerprint: Annotated[str, "Hash of the graph that these weights fit."]
    n_params: Annotated[int, "Parameters (arrays) written."]
    nbytes: Annotated[int, "Bytes of all parameters."]
    checkpoint_nbytes: Annotated[int, "Bytes of the same weights in the checkpoint."]
    sizes: Annotated[Mapping[str, int], "Bytes by kind of weight."]
    weights: Annotated[int, "Logical elements of the float model."]
    scales_rounded: Annotated[int, "Scales that float16 does not hold exactly."]
    float_layers: Annotated[tuple[str, ...], "Linear layers left in float."]
    requantized: Annotated[
        tuple[LayerError, ...], "What rounding cost, layer by layer; empty where all is exact."
    ]
    findings: Annotated[tuple[str, ...], "What the user should know."]
    seconds: Annotated[float, "Time it took."]

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / self.weights


def plan_weights(job: ConvertJob) -> Recognised:
    """What ``convert_weight`` would do, and all that it would refuse but for single codes."""
    return recognise(
        job.model_dir,
        job.source,
        job.source_format,
        job.quantization,
        requantize=job.requantize,
    )


@door
def convert_weight(job: ConvertJob, progress: Progress = silent) -> ConvertReport:
    """Convert the weights of a checkpoint into ``job.output``.

    Raises SourceError, CannotExpress, ConfigError or ArtifactError; the output is then untouched.
    """
    start = time.perf_counter()
    plan = plan_weights(job)
    output = Path(job.output)
    total, elements, stamp = plan.nbytes, plan.elements, plan.fingerprint
    _check_place(output, plan, total)
    _check_config(output, plan)
    md5 = total < MD5_BELOW if job.md5 is None else job.md5
    sizes: dict[str, int] = {}
    done: list[Encoded] = []
    metadata = {"mlc_bridge": {"version": __version__, "fingerprint": stamp}}
    requantize = Requantize.of(job.requantize)
    key = job_key(plan, requantize)
    with (
        digests_of(plan.ckpt) as digests,
        ShardWriter(output, metadata, md5=md5, job=key) as writer,
    ):
        for item in encoded(plan, requantize, finished(plan, writer)):
            _write(writer, item, plan, sizes)
            done.append(item)
            progress("convert", writer.nbytes, total)
        for name in plan.source.aside(plan.ckpt):
            writer.add(name, plan.ckpt.tensor(name))
        writer.metadata.update(
            ParamSize=len(writer.records),
            ParamBytes=float(writer.nbytes),
            BitsPerParam=writer.nbytes * 8 / elements,
        )
        errors = tuple(error for item in done for error in item.errors)
        writer.more["made_from"] = made_from(plan, job, digests, errors)
    findings = (*plan.findings(), *(f for item in done for f in item.findings))
    return ConvertReport(
        output=output,
        model_type=plan.arch.name,
        source_format=plan.source.name,
        quantization=plan.scheme.name,
        fingerprint=stamp,
        n_params=len(writer.records),
        nbytes=writer.nbytes,
        checkpoint_nbytes=plan.checkpoint_nbytes,
        sizes=sizes,
        weights=elements,
        scales_rounded=sum(item.scales_rounded for item in done),
        float_layers=tuple(plan.config.float_layers),
        requantized=errors,
        findings=tuple(dict.fromkeys(findings)),
        seconds=time.perf_counter() - start,
    )


def _write(writer: ShardWriter, item: Encoded, plan: Recognised, sizes: dict[str, int]) -> None:
    """Hand one weight to the writer, count its bytes by kind, and let go of it."""
    weight, specs = item.weight, plan.params(item.weight)
    kind = "float linear" if weight.path in plan.config.float_layers else str(weight.role)
    writer.note(weight.path, told(item))
    for suffix, array in item.params.items():
        name, spec = weight.parameter(suffix), specs[suffix]
        if array is None:
            writer.keep(name)
        else:
            writer.add(name, _agreed(name, array, spec))
        key = "bias" if suffix == "bias" else kind
        sizes[key] = sizes.get(key, 0) + writer.records[name].nbytes
    item.params = {}


def _agreed(name: str, array: Array, spec: Spec) -> Array:
    """The crossing: what is written is what the lib will ask for."""
    if array.shape != spec.shape or array.dtype.name != spec.dtype:
        raise AssertionError(
            f"{name}: encoded {array.shape} {array.dtype}, the scheme declares {spec}"
        )
    return array


def _check_place(output: Path, plan: Recognised, nbytes: int) -> None:
    """Not into the checkpoint itself, and not onto a disk that cannot take it."""
    weights = {entry.file.parent for entry in plan.ckpt.entries.values()}
    refuse_overlap(output, plan.ckpt.path, *weights)
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    begun = (output / WEIGHTS_WORK).glob("params_shard_*.bin")  # kept or removed
    free = shutil.disk_usage(there).free + sum(path.stat().st_size for path in begun)
    if free < nbytes:
        raise ArtifactError(
            "not enough space for the weights",
            where=output,
            found=f"{free / 1e6:.0f} MB free",
            expected=f"{nbytes / 1e6:.0f} MB",
            todo="Free space or choose another output",
        )


def _check_config(output: Path, plan: Recognised) -> None:
    """A config already in the output must describe these very weights."""
    if not (output / CONFIG_NAME).exists():
        return
    have = ChatConfig.load(output)
    floats = tuple(have.arch_config.get("float_layers", ()))
    for what, found, wanted in (
        ("model_type", have.model_type, plan.arch.name),
        ("quantization", have.quantization, plan.scheme.name),
        ("float_layers", floats, tuple(plan.config.float_layers)),
        ("fingerprint", have.fingerprint or plan.fingerprint, plan.fingerprint),
    ):
        if found != wanted:
            raise ArtifactError(
                f"the config in the output describes other weights ({what})",
                where=output / CONFIG_NAME,
                found=found,
                expected=wanted,
                todo="Run gen-config again with the same flags, or choose another output",
            )

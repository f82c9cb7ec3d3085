"""``inspect`` of a checkpoint: which format and why, what is quantized how, what lands exactly.

Headers give names, shapes and sizes; scales, zeros and codes of every quantized layer are read once
for the statistics (``samples_only`` reads one layer of every kind).

Codes of a healthy layer use nearly all values and lie rarely at the ends. A layer is an outlier
when it uses less than half of the values, or when its share of codes at the two ends is beyond
twice the median of all layers and above 5 %.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np

from mlc_bridge.errors import BridgeError, UnknownFormat
from mlc_bridge.models import MODELS
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.record import Record
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import SOURCES, Checkpoint, Evidence, Source
from mlc_bridge.stages import wishes
from mlc_bridge.stages.choose_scheme import refusal
from mlc_bridge.stages.door import door
from mlc_bridge.stages.kinds import kinds
from mlc_bridge.stages.layer_forms import LayerForm, block, layer_forms
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import Surveyed, detected, open_checkpoint, settled, survey
from mlc_bridge.stages.scheme_map import SchemeMap

CHUNK = 1 << 20  # codes counted at once


@dataclass(frozen=True)
class InspectJob(Record):
    """``model_dir``: checkpoint directory, weights file, or hub id."""

    model_dir: wishes.CheckpointPath
    source_format: wishes.SourceFormat = "auto"
    samples_only: Annotated[bool, "Read one layer of every kind."] = False


@dataclass(frozen=True)
class Part:
    """Tensors of one name pattern (layer numbers as ``*``): how many, dtype, shape, bytes."""

    pattern: str
    tensors: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Kind:
    """Quantized layers that are stored alike."""

    layers: int
    bits: int
    codes: str
    block: str
    zeros: str
    scale_dtype: str
    activation_order: bool
    input_scales: bool


@dataclass(frozen=True)
class CodeUse:
    """How one layer uses its codes: values that occur, share (0..1) at lowest and highest."""

    layer: str
    used: int
    of: int
    at_ends: float
    outlier: bool


@dataclass(frozen=True)
class SchemeFit:
    """Whether a scheme holds the quantized layers exactly; ``reason`` where it does not."""

    scheme: str
    exact: bool
    reason: str | None


@dataclass(frozen=True)
class CheckpointReport(Record):
    path: Annotated[Path, "Directory."]
    model_type: Annotated[str, "Architecture that config.json names."]
    supported: Annotated[bool, "Whether it can be converted."]
    source_format: Annotated[str | None, "Format found; none where no source fits."]
    evidence: Annotated[Mapping[str, Evidence], "What speaks for and against each format."]
    settings: Annotated[Mapping[str, Any], "The checkpoint's own quantization settings."]
    nbytes: Annotated[int, "Bytes of all tensors."]
    parts: Annotated[tuple[Part, ...], "Tensors by name pattern."]
    kinds: Annotated[tuple[Kind, ...], "Quantized layers that are stored alike."]
    float_layers: Annotated[tuple[str, ...], "Linear layers left in float."]
    codes: Annotated[tuple[CodeUse, ...], "How the layers use their codes."]
    schemes: Annotated[tuple[SchemeFit, ...], "Which schemes hold the checkpoint exactly."]
    layers: Annotated[tuple[LayerForm, ...], "What each layer holds and becomes; empty if refused."]
    findings: Annotated[tuple[str, ...], "What the user should know."]
    verdict: Annotated[str, "What build would do with it; inspect on the command line asks."] = ""


@door
def inspect_checkpoint(job: InspectJob, progress: Progress = silent) -> CheckpointReport:
    """Look at a checkpoint without converting it. Raises ``SourceError`` where it is damaged."""
    ckpt = open_checkpoint(job.model_dir)
    evidence = {name: source.evidence(ckpt) for name, source in SOURCES.items()}
    source: Source | None = None
    findings: tuple[str, ...] = ()
    try:
        ckpt, source = detected(ckpt, job.source_format)
    except UnknownFormat as error:
        findings = (str(error),)
    read: dict[str, Seen] = {}
    schemes: tuple[SchemeFit, ...] = ()
    layers: tuple[LayerForm, ...] = ()
    if source is not None:
        read = _read(ckpt, source, job.samples_only, progress)
        schemes, layers, refused = _fits(ckpt, source, read)
        findings += (*refused, *source.findings(ckpt))
    parts = _parts(ckpt)
    model_type = str(ckpt.config.get("model_type"))  # of the text part
    return CheckpointReport(
        path=ckpt.path,
        model_type=model_type,
        supported=model_type in MODELS,
        source_format=source.name if source else None,
        evidence={name: e for name, e in evidence.items() if e.supports},
        settings=ckpt.quantization,
        nbytes=sum(part.nbytes for part in parts),
        parts=parts,
        kinds=_kinds(seen.tensor for seen in read.values()),
        float_layers=_float_layers(ckpt, source) if source else (),
        codes=_outliers({name: seen.use for name, seen in read.items() if seen.use is not None}),
        schemes=schemes,
        layers=layers,
        findings=findings,
    )  # fmt: skip


def _parts(ckpt: Checkpoint) -> tuple[Part, ...]:
    """Tensors by pattern, in file order."""
    found: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name in ckpt.names:
        shape, dtype = ckpt.shape(name), ckpt.dtype(name)
        key = (_pattern(name), str(dtype), shape)
        found.setdefault(key, []).append(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return tuple(Part(p, len(b), d, s, sum(b)) for (p, d, s), b in found.items())


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


@dataclass(frozen=True)
class Seen:
    """A layer as read: values that occur, values there are and share at the ends (integers only);
    ``deep`` is what of its codes a scheme may look at.
    """

    tensor: QTensor
    use: tuple[int, int, float] | None
    deep: Hashable


def _read(
    ckpt: Checkpoint, source: Source, samples_only: bool, progress: Progress
) -> dict[str, Seen]:
    layers, found = source.layers(ckpt), {}
    if samples_only:
        layers = tuple({_pattern(layer): layer for layer in reversed(layers)}.values())[::-1]
    for done, layer in enumerate(layers):
        tensor = source.read(ckpt, layer)
        if isinstance(tensor, QTensor):
            found[layer] = _seen(tensor, layer)
        progress("inspect", done + 1, len(layers))
    return found


def _seen(tensor: QTensor, layer: str) -> Seen:
    codes: Array = tensor.codes.unpack()
    if codes.dtype.kind not in "ui":
        return Seen(tensor, None, (_counts(codes.view(np.uint8), 256) > 0).tobytes())
    counts = _counts(codes, 1 << tensor.bits)
    use = int((counts > 0).sum()), counts.size, float(counts[0] + counts[-1]) / max(1, codes.size)
    # Where zeros vary, a scheme without zeros looks at each group: no layer speaks for another.
    varied = tensor.zero is not None and not _constant(tensor.zero.unpack())
    return Seen(tensor, use, layer if varied else (counts > 0).tobytes())


def _counts(codes: Array, values: int) -> Array:
    """How often each code occurs, a chunk at a time (numpy counts in 64 bits)."""
    flat = codes.reshape(-1)
    chunks = (flat[at : at + CHUNK] for at in range(0, flat.size, CHUNK))
    return sum((np.bincount(c, minlength=values) for c in chunks), np.zeros(values, np.int64))


def _outliers(uses: Mapping[str, tuple[int, int, float]]) -> tuple[CodeUse, ...]:
    limit = max(0.05, 2 * median([ends for _, _, ends in uses.values()] or [0.0]))
    return tuple(
        CodeUse(layer, used, of, ends, used < min(of, 1 << 8) // 2 or ends > limit)
        for layer, (used, of, ends) in uses.items()
    )


def _kinds(tensors: Iterable[QTensor]) -> tuple[Kind, ...]:
    counts: dict[tuple[Any, ...], int] = {}
    for q in tensors:
        key = (
            q.bits,
            str(q.codes.words.dtype),
            block(q),
            "none" if q.zero is None else "constant" if _constant(q.zero.unpack()) else "per block",
            str(q.scale.dtype),
            q.perm is not None,
            q.input_scale is not None,
        )
        counts[key] = counts.get(key, 0) + 1
    return tuple(Kind(count, *key) for key, count in counts.items())


def _constant(zeros: Array) -> bool:
    return zeros.size > 0 and bool((zeros == zeros.flat[0]).all())


def _float_layers(ckpt: Checkpoint, source: Source) -> tuple[str, ...]:
    """Matrices that a quantized checkpoint leaves in float, as patterns."""
    quantized = set(source.layers(ckpt))
    if not quantized:
        return ()
    owners = (n.removesuffix(".weight") for n in ckpt.names if n.endswith(".weight"))
    left = (o for o in owners if o not in quantized and len(ckpt.shape(f"{o}.weight")) == 2)
    return tuple(dict.fromkeys(_pattern(owner) for owner in left))


def _fits(
    ckpt: Checkpoint, source: Source, read: Mapping[str, Seen]
) -> tuple[tuple[SchemeFit, ...], tuple[LayerForm, ...], tuple[str, ...]]:
    """Every scheme against every quantized layer; none, and why, where convert refuses the file.

    A float checkpoint fits its own dtype.
    """
    dense = not source.layers(ckpt)
    asked = [s for s in SCHEMES.values() if s.quantizes("linear") != dense]
    try:
        found = survey(ckpt, source)
    except BridgeError as error:
        return (), (), (f"convert refuses: {error}",)
    layers, notes = _layers(found)
    if dense:
        usual = (w for w in found.weights if w.role != "plain")
        own = {str(ckpt.dtype(f"{w.sources[0]}.weight")) for w in usual}
        return tuple(
            SchemeFit(s.name, own <= {s.model_dtype}, None if own <= {s.model_dtype}
                      else f"weights are {', '.join(sorted(own))}")
            for s in asked
        ), layers, notes  # fmt: skip
    alike = kinds(ckpt, source, found.weights, lambda x: read[x].deep if x in read else None)
    refused = {s.name: refusal(s, alike) for s in asked}
    return (
        tuple(
            SchemeFit(name, why is None, f"{why.tensor}: {why.reason}" if why else None)
            for name, why in refused.items()
        ),
        layers,
        notes,
    )


def _layers(found: Surveyed) -> tuple[tuple[LayerForm, ...], tuple[str, ...]]:
    """What ``auto`` makes of every layer, and its notes; none where no scheme holds one."""
    try:
        model = settled(found, SchemeMap.of("auto"))
    except BridgeError:  # the schemes' own reasons are told
        return (), found.notes
    return layer_forms(model), model.notes

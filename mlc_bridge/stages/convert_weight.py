"""Stage ``convert_weight``: checkpoint in, ``params_shard_*.bin`` and ``tensor-cache.json`` out.

First the plan, from headers alone: the source format, every weight the architecture wants with its
shape, and what becomes of every tensor in the checkpoint. Then the weights, one after the other:
read, stack (q/k/v, gate/up), encode. Last the publication, see ``artifact/tensor_cache.py``. An
error or an interruption at any moment leaves the output as it was.

A weight is expressed exactly or the stage stops; ``requantize`` is the user's wish for the other
thing, and the report then says what it cost, layer by layer.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlc_bridge import __version__
from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.manifest import fingerprint
from mlc_bridge.artifact.tensor_cache import ShardWriter, dtype_of
from mlc_bridge.errors import ArtifactError, CannotExpress, SourceError
from mlc_bridge.models import MODELS, Arch, ModelConfig, Weight
from mlc_bridge.models.arch import parameters
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor, concat
from mlc_bridge.schemes import SCHEMES, Scheme, Spec
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.schemes.model_dtype import narrow
from mlc_bridge.sources import Checkpoint, Source, detect
from mlc_bridge.sources.hub import resolve
from mlc_bridge.stages.choose_scheme import choose_scheme
from mlc_bridge.stages.float_layers import float_layers
from mlc_bridge.stages.progress import Progress, silent

MD5_BELOW = 256 << 20


@dataclass(frozen=True)
class ConvertJob:
    """What to convert; ``source`` names weights that lie elsewhere than ``model_dir``'s config.

    ``md5``: write md5 sums, which MLC's downloader compares where they are (no runtime does). They
    cost three times the copy itself, so by default only small models get them (``MD5_BELOW``).
    """

    model_dir: str | Path
    output: str | Path
    quantization: str = "auto"
    source: str | Path | None = None
    source_format: str = "auto"
    requantize: bool = False
    md5: bool | None = None


@dataclass(frozen=True)
class LayerError:
    """What re-quantizing cost one layer: |w - w'| at most, RMS of w - w', cosine of w and w'."""

    layer: str
    max: float
    rms: float
    cosine: float


@dataclass(frozen=True)
class ConvertReport:
    """What was written: ``sizes`` in bytes by kind of weight, ``weights`` in logical elements."""

    output: Path
    model_type: str
    source_format: str
    quantization: str
    fingerprint: str
    n_params: int
    nbytes: int
    sizes: Mapping[str, int]
    weights: int
    scales_rounded: int
    float_layers: tuple[str, ...]
    requantized: tuple[LayerError, ...]
    findings: tuple[str, ...]
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / self.weights


@dataclass(frozen=True)
class Plan:
    """Everything that headers decide; nothing has been read or written yet."""

    ckpt: Checkpoint
    source: Source
    scheme: Scheme
    arch: Arch
    config: ModelConfig
    weights: Sequence[Weight]

    @property
    def specs(self) -> dict[str, Spec]:
        """Full parameter name -> Spec, in the order in which they are written."""
        return {f"{w.path}.{s}": spec for w in self.weights for s, spec in self.params(w).items()}

    def params(self, weight: Weight) -> dict[str, Spec]:
        return parameters(weight, self.scheme, self.config.float_layers)

    @property
    def fingerprint(self) -> str:
        params = [(name, spec.shape, spec.dtype) for name, spec in self.specs.items()]
        return fingerprint(self.arch.name, self.config.asdict(), params)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters together."""
        sizes = (dtype_of(s.dtype).itemsize * math.prod(s.shape) for s in self.specs.values())
        return sum(sizes)

    @property
    def elements(self) -> int:
        """Logical elements: what the float model has."""
        return sum(w.n * max(w.k, 1) + (w.n if w.bias else 0) for w in self.weights)


@dataclass
class Encoded:
    """One weight ready to be written, and what there is to tell about it."""

    weight: Weight
    params: dict[str, Array]
    scales_rounded: int = 0
    error: LayerError | None = None
    findings: list[str] = field(default_factory=list)


def convert_weight(job: ConvertJob, progress: Progress = silent) -> ConvertReport:
    """Convert the weights of a checkpoint into ``job.output``.

    Raises SourceError, CannotExpress, ConfigError or ArtifactError; the output is then untouched.
    """
    start = time.perf_counter()
    plan = plan_weights(job)
    output = Path(job.output)
    _check_output(output, plan)
    stamp = {"version": __version__, "fingerprint": plan.fingerprint}
    sizes: dict[str, int] = {}
    told: list[Encoded] = []
    specs = plan.specs
    total = plan.nbytes
    md5 = total < MD5_BELOW if job.md5 is None else job.md5
    with ShardWriter(output, {"mlc_bridge": stamp}, md5=md5) as writer:
        for item in encoded(plan, job.requantize):
            kind = "float linear" if item.weight.path in plan.config.float_layers else None
            for suffix, array in item.params.items():
                name = f"{item.weight.path}.{suffix}"
                writer.add(name, _agreed(name, array, specs[name]))
                key = "bias" if suffix == "bias" else kind or item.weight.role
                sizes[key] = sizes.get(key, 0) + array.nbytes
            progress("convert", writer.nbytes, total)
            item.params = {}
            told.append(item)
        writer.metadata.update(
            ParamSize=len(writer.records),
            ParamBytes=float(writer.nbytes),
            BitsPerParam=writer.nbytes * 8 / plan.elements,
        )
    return ConvertReport(
        output=output,
        model_type=plan.arch.name,
        source_format=plan.source.name,
        quantization=plan.scheme.name,
        fingerprint=plan.fingerprint,
        n_params=len(writer.records),
        nbytes=writer.nbytes,
        sizes=sizes,
        weights=plan.elements,
        scales_rounded=sum(item.scales_rounded for item in told),
        float_layers=tuple(plan.config.float_layers),
        requantized=tuple(item.error for item in told if item.error is not None),
        findings=(*plan.source.findings(plan.ckpt), *(f for item in told for f in item.findings)),
        seconds=time.perf_counter() - start,
    )


def plan_weights(job: ConvertJob) -> Plan:
    """Read headers and decide everything; raises the errors that headers can show."""
    home = resolve(job.model_dir)
    ckpt = Checkpoint.open(home if job.source is None else job.source, config_dir=home)
    source = detect(ckpt, job.source_format)
    arch = MODELS[str(ckpt.config.get("model_type"))]
    floats = float_layers(ckpt, source, arch.weights(arch.config(ckpt.config)))
    config = arch.config(ckpt.config, float_layers=floats)
    weights = arch.weights(config)
    auto = job.quantization == "auto"
    scheme = choose_scheme(ckpt, source, weights) if auto else SCHEMES[job.quantization]
    plan = Plan(ckpt, source, scheme, arch, config, weights)
    for weight in weights:
        plan.params(weight)
        _check_sources(ckpt, source, weight)
    _check_leftovers(plan)
    return plan


def encoded(plan: Plan, requantize: bool) -> Iterator[Encoded]:
    """Every weight in order, encoded on all cores; at most one more than cores are in memory."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(workers or 1, thread_name_prefix="encode") as pool:
        ahead: deque[Future[Encoded]] = deque()
        try:
            for weight in plan.weights:
                ahead.append(pool.submit(_encode, plan, weight, requantize))
                if len(ahead) > (workers or 1):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _encode(plan: Plan, weight: Weight, requantize: bool) -> Encoded:
    done = Encoded(weight, {})
    is_float = "weight" in plan.params(weight)
    scheme = BY_DTYPE[plan.scheme.model_dtype] if is_float else plan.scheme
    if weight.role == "norm":
        arrays: list[QTensor | Array] = [plan.ckpt.tensor(f"{weight.sources[0]}.weight")]
    else:
        arrays = [plan.source.read(plan.ckpt, layer) for layer in weight.sources]
    done.params = _express(arrays, scheme, done, requantize)
    if weight.bias:
        parts = [_bias(plan, layer) for layer in weight.sources]
        bias = np.concatenate(parts) if len(parts) > 1 else parts[0]
        done.params["bias"] = narrow(bias, plan.scheme.model_dtype, f"{weight.path}.bias")
    return done


def _express(
    arrays: list[QTensor | Array], scheme: Scheme, done: Encoded, requantize: bool
) -> dict[str, Array]:
    path = done.weight.path
    tensors = [a for a in arrays if isinstance(a, QTensor)]
    if not tensors:
        return _from_float([a for a in arrays if not isinstance(a, QTensor)], scheme, path)
    try:
        if len(tensors) < len(arrays):
            raise CannotExpress(path, scheme.name, "some of its parts are float")
        tensor = _stacked(tensors, scheme, done)
        params = scheme.encode(tensor, path)
    except CannotExpress:
        if not requantize:
            raise
        return _requantized(arrays, scheme, done)
    if "scales" in params and params["scales"].dtype == np.float16:
        done.scales_rounded = _changed(tensor.scale)
    return params


def _from_float(arrays: list[Array], scheme: Scheme, path: str) -> dict[str, Array]:
    whole = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    if scheme in BY_DTYPE.values():
        return {"weight": narrow(whole, scheme.model_dtype, path)}
    return scheme.encode(scheme.quantize(whole), path)


def _stacked(tensors: list[QTensor], scheme: Scheme, done: Encoded) -> QTensor:
    """One tensor of the layers that are one here; a scheme may first bring them to one scale."""
    path = done.weight.path
    align = getattr(scheme, "align", None)
    if align is not None and len(tensors) > 1:
        tensors, findings = align(tensors, path)
        done.findings.extend(findings)
    try:
        return concat(tensors)
    except ValueError as problem:
        raise CannotExpress(path, scheme.name, str(problem)) from None


def _requantized(
    arrays: Sequence[QTensor | Array], scheme: Scheme, done: Encoded
) -> dict[str, Array]:
    path = done.weight.path
    floats = [a.dequantize() if isinstance(a, QTensor) else a.astype(np.float32) for a in arrays]
    exact = np.concatenate(floats) if len(floats) > 1 else floats[0]
    params = _from_float([exact], scheme, path)
    got = params["weight"] if "weight" in params else scheme.decode(params).dequantize()
    done.error = _error(path, exact, np.asarray(got, np.float32))
    return params


def _error(path: str, exact: Array, got: Array) -> LayerError:
    def dot(a: Array, b: Array) -> float:
        return float(np.sum(a * b, dtype=np.float64))

    gap = got - exact
    norms = math.sqrt(dot(exact, exact) * dot(got, got))
    cosine = dot(exact, got) / norms if norms else 1.0
    return LayerError(path, float(np.abs(gap).max()), math.sqrt(dot(gap, gap) / gap.size), cosine)


def _bias(plan: Plan, layer: str) -> Array:
    bias = plan.source.bias(plan.ckpt, layer)
    if bias is None:
        raise SourceError("the checkpoint lacks this tensor", where=f"{layer}.bias")
    return bias


def _changed(scale: Array) -> int:
    """How many scales change when they are stored as float16."""
    if scale.dtype == np.float16:
        return 0
    exact = scale.astype(np.float32)
    return int(np.count_nonzero(exact.astype(np.float16).astype(np.float32) != exact))


def _agreed(name: str, array: Array, spec: Spec) -> Array:
    """The crossing: what is written is what the lib will ask for."""
    if array.shape != spec.shape or array.dtype.name != spec.dtype:
        raise AssertionError(
            f"{name}: encoded {array.shape} {array.dtype}, the scheme declares {spec}"
        )
    return array


def _check_sources(ckpt: Checkpoint, source: Source, weight: Weight) -> None:
    if weight.role == "norm":
        ckpt.require(f"{weight.sources[0]}.weight", (weight.n,))
        return
    for layer, rows in zip(weight.sources, weight.rows, strict=True):
        source.check(ckpt, layer, (rows, weight.k))
        if weight.bias and f"{layer}.bias" in ckpt:
            ckpt.require(f"{layer}.bias", (rows,))
        elif weight.bias and source.bias(ckpt, layer) is None:
            raise SourceError("the checkpoint lacks this tensor", where=f"{layer}.bias")


def _check_leftovers(plan: Plan) -> None:
    """Every tensor of the checkpoint is used, or known to mean nothing here."""
    used = set(plan.source.aside(plan.ckpt))
    for weight in plan.weights:
        for layer in weight.sources:
            if weight.role == "norm":
                used.add(f"{layer}.weight")
                continue
            used.update(plan.source.parts(plan.ckpt, layer))
            if weight.bias:
                used.add(f"{layer}.bias")
    left = [n for n in plan.ckpt.names if n not in used and not _meaningless(plan.ckpt, n)]
    tied = all(weight.role != "lm_head" for weight in plan.weights)
    left = [n for n in left if not (tied and n == "lm_head.weight")]
    if left:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        raise SourceError(
            f"{plan.arch.name} has no place for these tensors of the checkpoint",
            where=plan.ckpt.path,
            found=", ".join(left[:4]) + more,
            todo="They change what the model computes, so the checkpoint is not converted",
        )


def _meaningless(ckpt: Checkpoint, name: str) -> bool:
    """Buffers that the graph computes itself, and biases of zeros that some tools write."""
    if name.endswith((".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")):
        return True
    return name.endswith(".bias") and not np.any(ckpt.tensor(name))


def _check_output(output: Path, plan: Plan) -> None:
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

"""One weight after the other, from the checkpoint's bytes to the scheme's parameters, on all cores.

read -> stack (q/k/v, gate/up) -> encode. Exactly, or CannotExpress; with ``requantize`` a weight
that the scheme cannot hold is dequantized in float32 and quantized by the scheme's own rounding,
and the difference is measured.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from mlc_bridge.errors import CannotExpress, SourceError
from mlc_bridge.models import Weight
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.record import Record
from mlc_bridge.schemes import Scheme
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.schemes.model_dtype import NUMPY_DTYPES, narrow
from mlc_bridge.stages.express import Read, aligned, express, stacked
from mlc_bridge.stages.recognise import Recognised
from mlc_bridge.stages.requantize import Requantize

NOTHING: Mapping[str, Encoded] = {}


@dataclass(frozen=True)
class LayerError(Record):
    """What re-quantizing cost one layer: |w - w'| at most, RMS of w - w', cosine of w and w'.

    ``relative`` is that RMS in parts of the weights' own.
    """

    layer: Annotated[str, "MLC path of the layer."]
    max: Annotated[float, "Largest |w - w'|."]
    rms: Annotated[float, "Root mean square of w - w'."]
    cosine: Annotated[float, "Cosine of w and w'."]
    relative: Annotated[float, "RMS of w - w' in parts of the weights' own."]


@dataclass
class Encoded:
    """One weight ready to be written, and what there is to tell about it."""

    weight: Weight
    params: Mapping[str, Array | None]
    """None stands for what an earlier run has written."""
    scales_rounded: int = 0
    errors: list[LayerError] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def encoded(
    model: Recognised, requantize: Requantize, known: Mapping[str, Encoded] = NOTHING
) -> Iterator[Encoded]:
    """Every weight in order; at most one more than there are cores is in memory.

    ``known``: weights by path that need no work.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(workers or 1, thread_name_prefix="encode") as pool:
        ahead: deque[Future[Encoded]] = deque()
        try:
            for weight in model.weights:
                ready = known.get(weight.path)
                ahead.append(pool.submit(_encode, model, weight, requantize, ready))
                if len(ahead) > (workers or 1):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _encode(
    model: Recognised, weight: Weight, requantize: Requantize, ready: Encoded | None
) -> Encoded:
    if ready is not None:
        return ready
    done = Encoded(weight, {})
    dtype = model.scheme.model_dtype
    if weight.tensor is not None:
        vector = model.ckpt.tensor(weight.tensor).reshape(weight.shape)
        if weight.offset:
            vector = vector + vector.dtype.type(weight.offset)
        suffix, spec = next(iter(model.params(weight).items()))
        done.params = {suffix: narrow(vector, spec.dtype, weight.path)}
    elif weight.experts:
        each = [weight.expert_sources(e) for e in range(weight.experts)]
        made = [_matrix(model, layers, done, requantize) for layers in each]
        done.params = {suffix: np.stack([m[suffix] for m in made]) for suffix in made[0]}
    else:
        done.params = _matrix(model, weight.sources, done, requantize)
    if weight.bias:
        parts = [_bias(model, layer) for layer in weight.sources]
        bias = np.concatenate(parts) if len(parts) > 1 else parts[0]
        bias = bias.reshape(weight.experts, weight.n) if weight.experts else bias
        done.params["bias"] = narrow(bias, dtype, f"{weight.path}.bias")
    return done


def _matrix(
    model: Recognised, layers: Sequence[str], done: Encoded, requantize: Requantize
) -> dict[str, Array]:
    """Parameters of the matrix that ``layers`` make, stacked along n."""
    scheme = model.scheme_of(done.weight)
    parts: list[Read] = [model.source.read(model.ckpt, layer) for layer in layers]
    path = done.weight.path if len(layers) == len(done.weight.sources) else layers[0]
    tensors = [part for part in parts if isinstance(part, QTensor)]
    if not tensors:
        if model.source.layers(model.ckpt) and scheme not in BY_DTYPE.values():
            done.findings.append(f"{path} is float in the checkpoint; {scheme.name} rounds it")
        return _from_float([p for p in parts if not isinstance(p, QTensor)], scheme, path)
    try:
        made = express(parts, scheme, path)
    except CannotExpress:
        if not requantize.covers(done.weight):
            raise
        return _requantized(parts, scheme, path, done)
    tensor, params = made.tensor, made.params
    places = (spec.filled_by for spec in scheme.params(*tensor.shape).values())
    if tensor.input_scale is not None and "calibrate" not in places:
        done.findings.append(
            f"{scheme.name} has no place for static activation scales: activations stay float"
        )
    if scheme not in BY_DTYPE.values():
        done.scales_rounded += _rounded(tensor.scale, params, scheme.model_dtype)
    return params


def _from_float(arrays: Sequence[Array], scheme: Scheme, path: str) -> dict[str, Array]:
    if len({array.dtype for array in arrays}) > 1:  # numpy joins no float16 to bfloat16
        arrays = [array.astype(np.float32) for array in arrays]
    whole = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    if scheme in BY_DTYPE.values():
        return {"weight": narrow(whole, scheme.model_dtype, path)}
    return scheme.encode(_quantized(whole, scheme, path), path)


def _quantized(whole: Array, scheme: Scheme, path: str) -> QTensor:
    """By the scheme's own rounding; a weight that is no number there makes its scale none."""
    todo = None
    try:
        with np.errstate(all="ignore"):
            made = scheme.quantize(whole)
        if np.isfinite(made.scale).all():
            return made
        reason = f"a weight is infinite, NaN or too large for {scheme.model_dtype}"
    except CannotExpress as error:
        reason = error.reason
    if reason.startswith("a weight is infinite"):
        todo = "The float checkpoint is damaged"
        if np.isfinite(whole).all():
            todo = "Choose a scheme whose model dtype has the range, such as q4bf16_1"
    raise CannotExpress(path, scheme.name, reason, todo=todo)


def _requantized(
    parts: Sequence[Read], scheme: Scheme, path: str, done: Encoded
) -> dict[str, Array]:
    floats = [p.dequantize() if isinstance(p, QTensor) else p.astype(np.float32) for p in parts]
    exact = np.concatenate(floats) if len(floats) > 1 else floats[0]
    params = _brought(parts, scheme, path) or _from_float([exact], scheme, path)
    dense = scheme in BY_DTYPE.values()
    got = params["weight"] if dense else scheme.decode(params).dequantize()[:, : exact.shape[1]]
    done.errors.append(layer_error(path, exact, np.asarray(got, np.float32)))
    return params


def _brought(parts: Sequence[Read], scheme: Scheme, path: str) -> dict[str, Array] | None:
    """The parts as the scheme's ``align`` moves them, which keeps codes where it can; or None."""
    tensors = [part for part in parts if isinstance(part, QTensor)]
    if len(tensors) < len(parts) or not hasattr(scheme, "align"):
        return None
    try:
        tensors, _ = aligned(tensors, scheme, path)
        return scheme.encode(stacked(tensors, scheme, path), path)
    except CannotExpress:
        return None


def layer_error(path: str, exact: Array, got: Array) -> LayerError:
    def dot(a: Array, b: Array) -> float:
        return float(np.sum(a * b, dtype=np.float64))

    gap = got - exact
    own, cost = dot(exact, exact), dot(gap, gap)
    norms = math.sqrt(own * dot(got, got))
    return LayerError(
        path,
        max=float(np.abs(gap).max()),
        rms=math.sqrt(cost / gap.size),
        cosine=dot(exact, got) / norms if norms else 1.0,
        relative=math.sqrt(cost / own) if own else 0.0,
    )


def _bias(model: Recognised, layer: str) -> Array:
    bias = model.source.bias(model.ckpt, layer)
    if bias is None:
        raise SourceError("the checkpoint lacks this tensor", where=f"{layer}.bias")
    return bias


def _rounded(scale: Array, params: dict[str, Array], dtype: str) -> int:
    """How many scales changed on their way into parameters of the model dtype."""
    stored = NUMPY_DTYPES[dtype]
    if scale.dtype == stored or all(array.dtype != stored for array in params.values()):
        return 0
    exact = scale.astype(np.float32)
    return int(np.count_nonzero(exact.astype(stored).astype(np.float32) != exact))

"""The weights of two MLC directories against each other, for ``verify --against``.

Under one scheme a weight must hold the same values in both. Where the schemes of a weight differ,
both sides are decoded and the distance is reported, as rounding is: it is no failure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.tensor_cache import TensorCache, read_index
from mlc_bridge.errors import ConfigError
from mlc_bridge.models import Weight
from mlc_bridge.packing import Array
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import Model, described
from mlc_bridge.stages.weight_encoding import layer_error
from mlc_bridge.stages.weights_report import Difference, Found, WeightsReport, first_of, unequal


def compare_artifacts(
    directory: str | Path, other: str | Path, progress: Progress = silent
) -> WeightsReport:
    """Raises ConfigError for two models of other shapes."""
    ours, theirs = _Side(directory), _Side(other)
    found, pairs = (
        Found("the other model's"),
        list(zip(ours.model.weights, theirs.model.weights, strict=False)),
    )
    if [_shape(w) for w in ours.model.weights] != [_shape(w) for w in theirs.model.weights]:
        raise ConfigError(
            "another model: its weights have other names or shapes",
            where=other,
            found=f"{theirs.model.arch.name}, {len(theirs.model.weights)} weights",
            expected=f"{ours.model.arch.name}, {len(ours.model.weights)}",
        )
    for done, (weight, twin) in enumerate(pairs):
        progress("compare weights", done, len(pairs))
        _compare(ours, theirs, weight, twin, found)
    progress("compare weights", len(pairs), len(pairs))
    return found.report()


class _Side:
    def __init__(self, directory: str | Path) -> None:
        self.model: Model = described(ChatConfig.load(directory))
        self.cache: TensorCache = read_index(directory)

    def params(self, weight: Weight) -> dict[str, Array]:
        names = {suffix: weight.parameter(suffix) for suffix in self.model.params(weight)}
        return {suffix: self.cache.array(name) for suffix, name in names.items()}

    def values(self, weight: Weight, expert: int | None) -> Array:
        """float32 ``[n, k]`` (a norm: ``[n]``) of one expert, or of the weight."""
        params, scheme = self.params(weight), self.model.scheme_of(weight)
        params = {s: a if expert is None else a[expert] for s, a in params.items() if s != "bias"}
        if scheme in BY_DTYPE.values() or weight.role in ("norm", "plain"):
            (only,) = params.values()
            return only.astype(np.float32)
        return scheme.decode(params).dequantize()[: weight.n, : weight.k]


def _shape(weight: Weight) -> tuple[object, ...]:
    return weight.path, weight.shape, weight.experts


def _compare(ours: _Side, theirs: _Side, weight: Weight, twin: Weight, found: Found) -> None:
    found.weights += 1
    mine, other = ours.params(weight), theirs.params(twin)
    if mine.keys() == other.keys() and all(_same(mine[s], other[s]) for s in mine):
        found.exact += 1
        return
    one_scheme = ours.model.scheme_of(weight) == theirs.model.scheme_of(twin)
    before = len(found.differences), len(found.rounded)
    for expert in range(weight.experts) if weight.experts else (None,):
        have, wanted = ours.values(weight, expert), theirs.values(twin, expert)
        path = weight.path if expert is None else f"{weight.path} (expert {expert})"
        bad = unequal(have, wanted)
        if one_scheme:
            found.differences += list(first_of(path, "", have, wanted, bad))[:1]
        elif bad.any():
            found.rounded.append(layer_error(path, wanted, have))
    if "bias" in mine.keys() & other.keys():
        found.differences += _bias(weight, mine["bias"], other["bias"])
    found.exact += before == (len(found.differences), len(found.rounded))


def _bias(weight: Weight, have: Array, wanted: Array) -> list[Difference]:
    have, wanted = have.astype(np.float32), wanted.astype(np.float32)
    return list(first_of(f"{weight.path}.bias", "", have, wanted, unequal(have, wanted)))


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

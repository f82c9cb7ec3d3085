"""The weights of an MLC directory against the checkpoint they were made from, value by value.

Both sides are decoded on their own: the stored arrays by ``Scheme.decode``, the checkpoint by its
source. Per layer ``[n, k]`` of the checkpoint one of three things must hold:

    exact     stored == (code - zero) * scale, the scale in the dtype that the scheme stores,
              or stored == weight in the model dtype: rounded to nearest, nothing else
    rounded   |stored - w| <= |r - w| + ulp  for every element, where r is what the scheme's own
              rounding makes of w; only where the scheme cannot hold the layer exactly
    neither   a ``Difference``: tensor, first index, what is there and what should be

A scale that is one percent off moves the largest weight of a group, which rounding leaves in place,
so that it is found there too. One weight is in memory at a time, in float32. Neither lib nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.manifest import RUNTIME_LIMITS
from mlc_bridge.artifact.tensor_cache import TensorCache, read_index
from mlc_bridge.errors import SourceError
from mlc_bridge.models import Weight
from mlc_bridge.packing import Array
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.schemes.model_dtype import NUMPY_DTYPES
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages.compare_matrix import Matrix
from mlc_bridge.stages.left_out import left_out
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import Model, described
from mlc_bridge.stages.weights_report import (
    Difference,
    Found,
    WeightsReport,
    as_narrowed,
    first_of,
    unequal,
)

LAYERS = ("float_layers", "split_layers", "linear_layers", "layer_schemes", "tie_word_embeddings")
"""Keys of the config that say how weights are stored; the tensors themselves are held to them."""


def compare_weights(
    directory: str | Path, ckpt: Checkpoint, source: Source, progress: Progress = silent
) -> WeightsReport:
    """Compare every weight. Raises ArtifactError or SourceError for what cannot be read."""
    found = Found()
    both = _Both(ChatConfig.load(directory), read_index(directory), ckpt, source)
    found.differences += both.config_differences()
    found.differences += both.name_differences()
    total = both.model.nbytes
    done = 0
    named = {difference.tensor for difference in found.differences}
    for weight in both.model.weights:
        names = [weight.parameter(suffix) for suffix in both.model.params(weight)]
        if named.isdisjoint(names):
            _compare(both, weight, found)
        done += sum(both.cache.records[n].nbytes for n in names if n in both.cache.records)
        progress("compare weights", done, total)
    found.differences += both.aside_differences()
    return found.report()


@dataclass(frozen=True)
class _Both:
    """Artifact and checkpoint, opened."""

    chat: ChatConfig
    cache: TensorCache
    ckpt: Checkpoint
    source: Source

    @cached_property
    def model(self) -> Model:
        """As the artifact describes itself."""
        return described(self.chat)

    def params(self, weight: Weight) -> dict[str, Array]:
        """Stored arrays by suffix."""
        suffixes = self.model.params(weight)
        return {suffix: self.cache.array(weight.parameter(suffix)) for suffix in suffixes}

    def matrix(self, weight: Weight, layers: Sequence[str]) -> Matrix:
        """``layers`` make all of ``weight``, or one of its experts."""
        scheme = self.model.scheme_of(weight)
        return Matrix(self.ckpt, self.source, self.model.weights, weight, layers, scheme)

    def config_differences(self) -> Iterator[Difference]:
        """Keys of the model's config that config.json says otherwise; MLC LLM's own are not held
        to it.
        """
        if self.chat.fingerprint is None:
            return
        kept = {k: v for k, v in self.chat.arch_config.items() if k in {*RUNTIME_LIMITS, *LAYERS}}
        ours = self.model.config.asdict()
        theirs = self.model.arch.config(self.ckpt.config, **kept).asdict()
        for key in sorted(theirs.keys() - RUNTIME_LIMITS - {*LAYERS}):
            if ours.get(key) != theirs[key]:
                said, wanted = str(ours.get(key)), f"{theirs[key]} as in config.json"
                yield Difference("model_config", key, (), said, wanted, 0, 0)

    def name_differences(self) -> Iterator[Difference]:
        """Parameters that are missing, of another form or unknown; tensors left out wrongly."""
        specs, records = self.model.specs, self.cache.records
        for name, spec in specs.items():
            record = records.get(name)
            said = f"{list(record.shape)} {record.dtype}" if record else "no such parameter"
            if record is None or (record.shape, record.dtype) != (spec.shape, spec.dtype):
                wanted = f"{list(spec.shape)} {spec.dtype}"
                yield Difference(name, "", (), said, wanted, 0, 0)
        for name in sorted(records.keys() - specs.keys() - {*self.source.aside(self.ckpt)}):
            yield Difference(name, "", (), "a parameter", "none of this name", 0, 0)
        try:
            left_out(self.ckpt, self.source, self.model.weights)
        except SourceError as error:
            said = f"left out of the model ({error.what}: {error.found or error.where})"
            yield Difference(str(error.found or error.where), "", (), said, "a weight", 0, 0)

    def aside_differences(self) -> Iterator[Difference]:
        """Tensors that are carried along unused."""
        for name in self.source.aside(self.ckpt):
            if name in self.cache.records:
                found, wanted = self.cache.array(name), self.ckpt.tensor(name)
                yield from first_of(name, name, found, wanted, unequal(found, wanted))


def _compare(both: _Both, weight: Weight, found: Found) -> None:
    """One weight: its matrix or vector, its bias."""
    params, before = both.params(weight), len(found.differences)
    errors = len(found.rounded)
    found.weights += 1
    if weight.tensor is not None:
        found.differences += _vector(both, weight, weight.tensor, params)
    elif weight.experts:
        for e in range(weight.experts):
            one = {suffix: array[e] for suffix, array in params.items()}
            both.matrix(weight, weight.expert_sources(e)).compare(one, found)
    else:
        both.matrix(weight, weight.sources).compare(params, found)
    if weight.bias:
        found.differences += _bias(both, weight, params["bias"])
    found.exact += len(found.differences) == before and len(found.rounded) == errors
    found.notes += _narrowed(both, weight)


def _vector(
    both: _Both, weight: Weight, tensor: str, params: Mapping[str, Array]
) -> Iterator[Difference]:
    suffix = next(iter(params))
    wanted = both.ckpt.tensor(tensor).reshape(weight.shape)
    if weight.offset:
        wanted = wanted + wanted.dtype.type(weight.offset)
    yield from as_narrowed(weight.parameter(suffix), tensor, params[suffix], wanted)


def _bias(both: _Both, weight: Weight, stored: Array) -> Iterator[Difference]:
    at, stored = 0, stored.reshape(-1)
    for layer, n in zip(weight.sources, weight.rows * max(weight.experts, 1), strict=True):
        wanted = both.source.bias(both.ckpt, layer)
        wanted = np.zeros(n, stored.dtype) if wanted is None else wanted
        yield from as_narrowed(f"{weight.path}.bias", f"{layer}.bias", stored[at : at + n], wanted)
        at += n


def _narrowed(both: _Both, weight: Weight) -> Iterator[str]:
    """What storing a float tensor in the model dtype rounds."""
    stored = both.model.scheme.model_dtype
    for name in (f"{layer}.weight" for layer in weight.sources[:1]):
        if both.model.scheme_of(weight) in BY_DTYPE.values() and name in both.ckpt:
            have = ml_dtypes.finfo(both.ckpt.dtype(name))
            if have.nmant > ml_dtypes.finfo(NUMPY_DTYPES[stored]).nmant:
                yield f"float weights are rounded from {both.ckpt.dtype(name)} to {stored}"

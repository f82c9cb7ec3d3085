"""One matrix of an MLC directory and the layers of the checkpoint that it is made of.

Every source layer is a run of rows of the matrix; see ``compare_weights.py`` for what must hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.models import Weight
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import Scheme
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages.express import Read, aligned, express
from mlc_bridge.stages.likely_cause import likely_cause
from mlc_bridge.stages.weight_encoding import layer_error
from mlc_bridge.stages.weights_report import Difference, Found, as_narrowed, first_of, unequal


@dataclass(frozen=True)
class Matrix:
    """One matrix of the model and the layers of the checkpoint that it is made of."""

    ckpt: Checkpoint
    source: Source
    weights: Sequence[Weight]
    """Of the whole model, to look for layers in each other's place."""
    weight: Weight
    layers: Sequence[str]
    scheme: Scheme

    @cached_property
    def parts(self) -> list[Read]:
        """The checkpoint's layers ``[rows_i, k]``."""
        return [self.source.read(self.ckpt, layer) for layer in self.layers]

    def compare(self, params: Mapping[str, Array], found: Found) -> None:
        """``params``: the stored arrays by suffix, of this expert if there are many."""
        if self.scheme in BY_DTYPE.values():
            found.differences += self.dense_differences(params["weight"], found)
            return
        stored = self.scheme.decode({k: v for k, v in params.items() if k != "bias"})
        values = stored.dequantize()[:, : self.weight.k]
        bad = self.differences(self.as_stored(stored.scale.dtype), values)
        if not bad:
            found.scales_rounded += self.scales_rounded(stored.scale.dtype)
            found.notes += self.input_scale_note(stored)
        elif self.must_be_exact():
            found.differences += bad[:1]
        else:
            self.rounding(values, stored, found)

    @property
    def _rows(self) -> Iterator[slice]:
        at = 0
        for part in self.parts:
            yield slice(at, at + part.shape[0])
            at += part.shape[0]

    def dense_differences(self, stored: Array, found: Found) -> Iterator[Difference]:
        """Of a weight that is stored in the model dtype."""
        for layer, part, rows in zip(self.layers, self.parts, self._rows, strict=True):
            wanted = part.dequantize() if isinstance(part, QTensor) else part
            yield from as_narrowed(f"{self.weight.path}.weight", layer, stored[rows], wanted)
            if isinstance(part, QTensor) and not _holds(wanted, stored.dtype):
                got = stored[rows].astype(np.float32)
                found.rounded.append(layer_error(self.weight.path, wanted, got))

    def as_stored(self, dtype: Any) -> Iterator[Array]:
        """The checkpoint's weights with scales in the scheme's dtype."""
        for part in self.parts:
            narrowed = isinstance(part, QTensor) and replace(part, scale=_narrow(part.scale, dtype))
            yield narrowed.dequantize() if narrowed else np.asarray(part, np.float32)

    def differences(self, wanted: Iterator[Array], values: Array) -> list[Difference]:
        """``values`` ``[n, k]`` that are not as ``wanted``, layer by layer."""
        return [
            difference
            for layer, rows, one in zip(self.layers, self._rows, wanted, strict=True)
            for difference in self._named(layer, values[rows], one, unequal(values[rows], one))
        ]

    def _named(self, layer: str, found: Array, wanted: Array, bad: Array) -> Iterator[Difference]:
        """With the likely cause."""
        for one in first_of(self.weight.path, layer, found, wanted, bad):
            cause = likely_cause(found, wanted, self._others(layer))
            yield replace(one, cause=cause)

    def _others(self, layer: str) -> Iterator[tuple[str, Array]]:
        """Layers that may have been taken for ``layer``, with their values ``[n, k]``."""
        kin = [s for s in self.weight.sources if s != layer]
        ends = layer.rpartition(".")[2]
        kin += [
            s
            for w in self.weights
            if w.role == self.weight.role and w.path != self.weight.path
            for s in w.sources
            if s.rpartition(".")[2] == ends
        ]
        for name in kin:
            read = self.source.read(self.ckpt, name)
            yield name, read.dequantize() if isinstance(read, QTensor) else read

    def must_be_exact(self) -> bool:
        """Whether the scheme holds these layers; conversion then never rounds them."""
        try:
            express(self.parts, self.scheme, self.weight.path)
        except CannotExpress:
            return False
        return True

    def scales_rounded(self, dtype: Any) -> int:
        """Scales that are another number in ``dtype``."""
        scales = [part.scale for part in self.parts if isinstance(part, QTensor)]
        wide = [s for s in scales if s.dtype != dtype]
        return sum(
            int((_narrow(s, dtype).astype(np.float32) != s.astype(np.float32)).sum()) for s in wide
        )

    def input_scale_note(self, stored: QTensor) -> list[str]:
        """Activation scales that ``calibrate`` may have measured anew."""
        given = [p.input_scale for p in self.parts if isinstance(p, QTensor)]
        brought = [s.max() for s in given if s is not None]
        if stored.input_scale is None or len(brought) < len(self.parts):
            return []
        if np.float32(stored.input_scale) == np.float32(max(brought)):
            return []
        return [f"{self.weight.path}: the activation scale is not the checkpoint's (calibrated?)"]

    def rounding(self, values: Array, stored: QTensor, found: Found) -> None:
        """Judge a weight that the scheme had to round."""
        floats = [p.dequantize() if isinstance(p, QTensor) else p for p in self.parts]
        exact = np.concatenate([np.asarray(p, np.float32) for p in floats])
        misses = []
        for made in self._roundings(exact):
            gap, allowed = np.abs(values - exact), np.abs(made - exact)
            allowed += np.abs(made) * np.float32(ml_dtypes.finfo(stored.scale.dtype).eps)
            misses.append((made, ~(gap <= allowed)))
            if not misses[-1][1].any():
                found.rounded.append(layer_error(self._path, exact, values))
                return
        made, bad = misses[-1]
        for layer, rows in zip(self.layers, self._rows, strict=True):
            if bad[rows].any():
                found.differences += self._named(layer, values[rows], made[rows], bad[rows])
                return

    @property
    def _path(self) -> str:
        return self.layers[0] if self.weight.experts else self.weight.path

    def _roundings(self, exact: Array) -> Iterator[Array]:
        """What the scheme may have made of the weights: its parts aligned, or quantized anew."""
        tensors = [part for part in self.parts if isinstance(part, QTensor)]
        if len(tensors) == len(self.parts) and hasattr(self.scheme, "align"):
            moved, _ = aligned(tensors, self.scheme, self.weight.path)
            yield np.concatenate([part.dequantize() for part in moved])
        floats = [part for part in self.parts if not isinstance(part, QTensor)]
        whole = np.concatenate(floats) if len(floats) == len(self.parts) else exact
        yield self.scheme.quantize(whole).dequantize()[:, : exact.shape[1]]


def _narrow(scale: Array, dtype: Any) -> Array:
    """To nearest; what the dtype cannot hold is the scale of a group of zeros, see
    ``regroup.narrow_scale``.
    """
    if scale.dtype == dtype:
        return scale
    high = float(ml_dtypes.finfo(dtype).max)
    return np.clip(scale.astype(np.float32), -high, high).astype(dtype)


def _holds(values: Array, dtype: Any) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(dtype).astype(np.float32), values, equal_nan=True)

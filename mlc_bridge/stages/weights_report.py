"""What a comparison of weights found: differences by tensor and index, rounding by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.record import Record
from mlc_bridge.stages.likely_cause import likely_cause
from mlc_bridge.stages.weight_encoding import LayerError

SLAB = 1 << 24
"""Elements of a float table that are looked at together."""


@dataclass(frozen=True)
class Difference(Record):
    """Where the artifact and the checkpoint part: ``count`` of ``elements`` values of ``layer``."""

    tensor: Annotated[str, "MLC's name of the parameter, or of the layer that it makes."]
    layer: Annotated[str, "The checkpoint's layer or tensor."]
    index: Annotated[tuple[int, ...], "The first value that differs, inside that layer."]
    found: Annotated[str, "What the artifact holds there."]
    expected: Annotated[str, "What the checkpoint says."]
    count: Annotated[int, "How many values differ."]
    elements: Annotated[int, "How many there are."]
    cause: Annotated[str, "What the values look like, where that shows."] = ""

    def __str__(self) -> str:
        at = f" at {list(self.index)}" if self.index else ""
        many = f"; {self.count} of {self.elements} values" if self.count else ""
        cause = f" ({self.cause})" if self.cause else ""
        layer = f", {self.layer}" if self.layer not in ("", self.tensor) else ""
        return f"{self.tensor}{layer}{at}: {self.found}, expected {self.expected}{many}{cause}"


@dataclass(frozen=True)
class WeightsReport(Record):
    """The whole model's weights."""

    verdict: Annotated[str, "One line about the whole model."]
    passed: Annotated[bool, "Whether nothing differs."]
    weights: Annotated[int, "Weights compared."]
    exact: Annotated[int, "Weights that hold the checkpoint's values."]
    scales_rounded: Annotated[int, "Scales of them in a narrower dtype than the checkpoint's."]
    rounded: Annotated[tuple[LayerError, ...], "Layers that the scheme had to round, and the cost."]
    differences: Annotated[tuple[Difference, ...], "The first difference of every tensor."]
    notes: Annotated[tuple[str, ...], "What the user should know."]


@dataclass
class Found:
    """What was seen so far."""

    whose: str = "the checkpoint's"
    weights: int = 0
    exact: int = 0
    scales_rounded: int = 0
    rounded: list[LayerError] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self) -> WeightsReport:
        bad, passed = self.differences, not self.differences
        rest = self.weights - self.exact
        said = f"all {self.exact} weights hold {self.whose} values"
        if rest:
            said = f"{self.exact} weights hold {self.whose} values, {rest} are rounded from them"
        verdict = said if passed else f"{len(bad)} tensors differ; the first: {bad[0]}"
        notes = tuple(dict.fromkeys(self.notes))
        lists = (tuple(self.rounded), tuple(bad), notes)
        return WeightsReport(verdict, passed, self.weights, self.exact, self.scales_rounded, *lists)


def unequal(found: Array, wanted: Array) -> Array:
    """Where two arrays differ; NaN equals NaN, and 0 equals -0."""
    bad = found != wanted
    if bad.any():
        bad &= ~((found != found) & (wanted != wanted))
    return bad


def as_narrowed(tensor: str, layer: str, stored: Array, wanted: Array) -> Iterator[Difference]:
    """``stored`` must be ``wanted`` in its dtype, rounded to nearest."""
    rows = max(1, SLAB // max(1, wanted[0].size if wanted.ndim else 1))
    bad: list[Difference] = []
    for at in range(0, len(wanted), rows):
        found = stored[at : at + rows]
        with np.errstate(over="ignore"):
            slab = wanted[at : at + rows].astype(stored.dtype)
        for one in first_of(tensor, layer, found, slab, unequal(found, slab)):
            index = (one.index[0] + at, *one.index[1:])
            cause = likely_cause(found, slab, iter(()))
            bad.append(replace(one, index=index, elements=wanted.size, cause=cause))
    if bad:
        yield replace(bad[0], count=sum(one.count for one in bad))


def first_of(
    tensor: str, layer: str, found: Array, wanted: Array, bad: Array
) -> Iterator[Difference]:
    """The first place where ``bad`` is true, if any."""
    if not bad.any():
        return
    index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
    here, there = f"{float(found[index]):.8g}", f"{float(wanted[index]):.8g}"
    yield Difference(tensor, layer, index, here, there, int(bad.sum()), bad.size)

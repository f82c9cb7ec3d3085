"""The contract of an output: one layer's numbers in, a tool's tensors and settings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.quantizers.recipe import Recipe


@dataclass(frozen=True)
class Static:
    """Stored scale and zero (0 .. 255) of a layer's input."""

    scale: float
    zero: int


@dataclass(frozen=True)
class Rounded:
    """One quantized layer; ``more`` are tensors beside it (suffix -> array) of one format alone."""

    q: QTensor
    inputs: Static | None = None
    bias: Array | None = None
    second: Array | None = None
    more: Mapping[str, Array] = field(default_factory=dict)


class Output(Protocol):
    """A checkpoint format that can be written."""

    name: str
    stem: str

    def check(self, recipe: Recipe) -> None:
        """Raises ConfigError for what the format cannot say."""
        ...

    def tensors(self, layer: str, found: Rounded, recipe: Recipe) -> dict[str, Array]:
        """Full names -> arrays of one quantized layer."""
        ...

    def settings(
        self, recipe: Recipe, floats: Sequence[str], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        """config.json of the quantized model; ``floats``: linear layers left in float."""
        ...

"""The contract of an output: one layer's numbers in, a tool's tensors and settings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """One quantized layer; ``second`` is the outer scale ``[n, 1]`` of two."""

    q: QTensor
    inputs: Static | None = None
    bias: Array | None = None
    second: Array | None = None
    model_dtype: str = "float16"


class Output(Protocol):
    """A checkpoint format that can be written."""

    name: str

    def check(self, recipe: Recipe) -> None:
        """Raises ConfigError for what the format cannot say."""
        ...

    def tensors(self, layer: str, found: Rounded, recipe: Recipe) -> dict[str, Array]:
        """Full names -> arrays of one quantized layer."""
        ...

    def stem(self, recipe: Recipe) -> str:
        """Beginning of the weight files' names."""
        return "model"

    def floats(self, name: str, tensor: Array, recipe: Recipe) -> dict[str, Array]:
        """What is written of a tensor that is not quantized."""
        return {name: tensor}

    def described(
        self, recipe: Recipe, names: Sequence[str], layers: Sequence[str]
    ) -> dict[str, str]:
        """Further text files: name -> content; ``names`` are all tensors, ``layers`` quantized."""
        return {}

    def settings(
        self, recipe: Recipe, floats: Sequence[str], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        """config.json of the quantized model; ``floats``: linear layers left in float."""
        ...

"""The norm of all layers: its values in the weight table and in the graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.part import Path

if TYPE_CHECKING:
    from mlc_bridge.models.decoder.layers import Layer
    from mlc_bridge.schemes.scheme import Scheme


@dataclass(frozen=True)
class Norm:
    """x / sqrt(mean(x^2) + eps) * weight; ``offset`` is added to the checkpoint's weight."""

    eps: float
    offset: float = 0.0

    def weight(self, names: Path, width: int) -> Weight:
        return Weight(names[0], (names[1],), (width,), 0, "norm", offset=self.offset)

    def plant(self, weight: Weight, scheme: Scheme) -> Layer:
        from mlc_bridge.models.decoder.layers import RMSNorm

        return RMSNorm(weight, scheme, self.eps)


@dataclass(frozen=True)
class LayerNorm(Norm):
    """(x - mean(x)) / sqrt(var(x) + eps) * (weight + shift) + bias, where there is a bias.

    ``shift`` is added in the graph, where MLC stores the checkpoint's weight as it is.
    """

    bias: bool = False
    shift: float = 0.0

    def weight(self, names: Path, width: int) -> Weight:
        return replace(super().weight(names, width), bias=self.bias)

    def plant(self, weight: Weight, scheme: Scheme) -> Layer:
        from mlc_bridge.models.decoder import layers

        return layers.LayerNorm(weight, scheme, self.eps, self.shift)

"""The MLP of a layer, two kinds.

Gated   down(act(gate(x)) * up(x)), gate and up fused to one matrix
Plain   down(act(up(x)))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlc_bridge.models.decoder.part import Block, Path, Step, Weights, matrix

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


@dataclass(frozen=True)
class Gated:
    inner: int
    activation: Activation = "silu"
    bias: bool = False
    gate_up: Path = ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj")
    down: Path = ("mlp.down_proj", "mlp.down_proj")

    def weights(self, hidden: int) -> Weights:
        return {
            "gate_up": matrix(self.gate_up, (self.inner, self.inner), hidden, bias=self.bias),
            "down": matrix(self.down, (hidden,), self.inner, bias=self.bias),
        }

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from mlc_bridge.models.decoder.layers import gated

        return block["down"](gated(block["gate_up"](x), self.activation))


@dataclass(frozen=True)
class Plain:
    inner: int
    activation: Activation
    bias: bool = False
    up: Path = ("mlp.up_proj", "mlp.up_proj")
    down: Path = ("mlp.down_proj", "mlp.down_proj")

    def weights(self, hidden: int) -> Weights:
        return {
            "up": matrix(self.up, (self.inner,), hidden, bias=self.bias),
            "down": matrix(self.down, (hidden,), self.inner, bias=self.bias),
        }

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from mlc_bridge.models.decoder.layers import activated

        return block["down"](activated(block["up"](x), self.activation))

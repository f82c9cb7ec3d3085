"""A layer: a mixer, an MLP, and how they join the residual stream.

Pre        x += scale mixer(norm(x));  x += scale mlp(norm(x))
Post       x += norm(mixer(x));        x += norm(mlp(x))
Sandwich   x += norm(mixer(norm(x)));  x += norm(mlp(norm(x)))
Parallel   y = norm(x);                x += mixer(y) + mlp(y)

``Single`` is a layer of one part alone: x += part(norm(x)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.part import Block, Mixer, Part, Path, Step, Weights
from mlc_bridge.models.decoder.state import State

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

Run = Callable[["nn.Tensor"], "nn.Tensor"]
POST_ATTENTION: Path = ("post_attention_layernorm", "post_attention_layernorm")
PRE_MLP: Path = ("pre_feedforward_layernorm", "pre_feedforward_layernorm")
POST_MLP: Path = ("post_feedforward_layernorm", "post_feedforward_layernorm")


class Join(Protocol):
    def weights(self, hidden: int) -> Weights: ...

    def emit(self, block: Block, x: nn.Tensor, mixer: Run, mlp: Run) -> nn.Tensor: ...


@dataclass(frozen=True)
class Pre:
    norm: Norm
    before_mixer: Path = ("input_layernorm", "input_layernorm")
    before_mlp: Path = POST_ATTENTION
    scale: float = 1.0

    def weights(self, hidden: int) -> Weights:
        return {
            "attn_norm": self.norm.weight(self.before_mixer, hidden),
            "mlp_norm": self.norm.weight(self.before_mlp, hidden),
        }

    def emit(self, block: Block, x: nn.Tensor, mixer: Run, mlp: Run) -> nn.Tensor:
        x = x + self._scaled(mixer(block["attn_norm"](x)))
        return x + self._scaled(mlp(block["mlp_norm"](x)))

    def _scaled(self, y: nn.Tensor) -> nn.Tensor:
        return y if self.scale == 1.0 else y * self.scale


@dataclass(frozen=True)
class Post:
    norm: Norm
    after_mixer: Path = POST_ATTENTION
    after_mlp: Path = POST_MLP

    def weights(self, hidden: int) -> Weights:
        return {
            "attn_post": self.norm.weight(self.after_mixer, hidden),
            "mlp_post": self.norm.weight(self.after_mlp, hidden),
        }

    def emit(self, block: Block, x: nn.Tensor, mixer: Run, mlp: Run) -> nn.Tensor:
        x = x + block["attn_post"](mixer(x))
        return x + block["mlp_post"](mlp(x))


@dataclass(frozen=True)
class Sandwich(Pre):
    before_mlp: Path = PRE_MLP
    after_mixer: Path = POST_ATTENTION
    after_mlp: Path = POST_MLP

    def weights(self, hidden: int) -> Weights:
        return {
            **super().weights(hidden),
            "attn_post": self.norm.weight(self.after_mixer, hidden),
            "mlp_post": self.norm.weight(self.after_mlp, hidden),
        }

    def emit(self, block: Block, x: nn.Tensor, mixer: Run, mlp: Run) -> nn.Tensor:
        x = x + block["attn_post"](mixer(block["attn_norm"](x)))
        return x + block["mlp_post"](mlp(block["mlp_norm"](x)))


@dataclass(frozen=True)
class Parallel:
    norm: Norm
    before: Path = ("input_layernorm", "input_layernorm")

    def weights(self, hidden: int) -> Weights:
        return {"norm": self.norm.weight(self.before, hidden)}

    def emit(self, block: Block, x: nn.Tensor, mixer: Run, mlp: Run) -> nn.Tensor:
        y = block["norm"](x)
        return x + mixer(y) + mlp(y)


@dataclass(frozen=True)
class Layer:
    mixer: Mixer
    mlp: Part
    join: Join

    def weights(self, hidden: int) -> Weights:
        """Slot -> weight relative to the layer, in MLC's order."""
        return {
            **self.mixer.weights(hidden),
            **self.mlp.weights(hidden),
            **self.join.weights(hidden),
        }

    def state(self) -> State | None:
        return self.mixer.state()

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        return self.join.emit(
            block,
            x,
            lambda y: self.mixer.emit(block, y, step),
            lambda y: self.mlp.emit(block, y, step),
        )


@dataclass(frozen=True)
class Single:
    part: Part | Mixer
    norm: Norm
    before: Path = ("norm", "norm")

    def weights(self, hidden: int) -> Weights:
        return {**self.part.weights(hidden), "norm": self.norm.weight(self.before, hidden)}

    def state(self) -> State | None:
        return self.part.state() if isinstance(self.part, Mixer) else None

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        return x + self.part.emit(block, block["norm"](x), step)

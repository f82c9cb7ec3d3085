"""A mixture instead of the MLP: every token goes through a few of many gated MLPs.

    chosen = the ``chosen`` best of softmax(router(x));    y = sum_c share_c * expert_c(x)

The softmax runs over all experts; ``renormalize`` makes the chosen shares sum to 1. In ``gate_up``
and ``down`` the checkpoint's paths have an expert number ``{}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.mlp import Activation
from mlc_bridge.models.decoder.part import Block, Path, Step, Weights, matrix

if TYPE_CHECKING:
    from tvm.relax.frontend import nn


@dataclass(frozen=True)
class Experts:
    count: int
    chosen: int
    inner: int
    renormalize: bool
    gate_up: Path
    down: Path
    router: Path = ("mlp.gate", "mlp.gate")
    activation: Activation = "silu"

    def weights(self, hidden: int) -> Weights:
        return {
            "router": matrix(self.router, (self.count,), hidden, role="router"),
            "expert_gate_up": self._stack(self.gate_up, (self.inner, self.inner), hidden),
            "expert_down": self._stack(self.down, (hidden,), self.inner),
        }

    def _stack(self, names: Path, rows: tuple[int, ...], k: int) -> Weight:
        path, *parts = names
        sources = tuple(part.format(number) for number in range(self.count) for part in parts)
        return Weight(path, sources, rows, k, experts=self.count)

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder.layers import gated
        from mlc_bridge.models.decoder.mixture import choose

        scores = block["router"](x, "float32")
        chosen, share = choose(scores, self.chosen, renormalize=self.renormalize)
        inner = gated(block["expert_gate_up"](x, chosen), self.activation)
        return op.reshape(block["expert_down"].combine(inner, chosen, share), x.shape)

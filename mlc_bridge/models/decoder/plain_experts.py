"""A mixture of plain MLPs, ``down(act(up(x)))``, beside one that every token goes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.mlp import Activation, Plain
from mlc_bridge.models.decoder.part import Block, Path, Step, Weights
from mlc_bridge.models.decoder.router import Router

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

SHARED = "shared_"


@dataclass(frozen=True)
class PlainExperts:
    router: Router
    count: int
    inner: int
    activation: Activation
    up: Path
    """The checkpoint's path has an expert number ``{}``, as that of ``down``."""
    down: Path
    shared: Plain

    def weights(self, hidden: int) -> Weights:
        shared = self.shared.weights(hidden).items()
        return {
            **self.router.weights(hidden, self.count),
            "expert_up": self._stack(self.up, self.inner, hidden),
            "expert_down": self._stack(self.down, hidden, self.inner),
            **{f"{SHARED}{slot}": weight for slot, weight in shared},
        }

    def _stack(self, names: Path, n: int, k: int) -> Weight:
        path, part = names
        sources = tuple(part.format(number) for number in range(self.count))
        return Weight(path, sources, (n,), k, experts=self.count)

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder.layers import activated
        from mlc_bridge.models.decoder.mixture import combined

        b, s, hidden = x.shape
        chosen, share = self.router.emit(block, x)
        up = block["expert_up"](op.reshape(x, (b * s, hidden)), chosen)
        each = block["expert_down"](activated(up, self.activation), chosen, "float32")
        y = op.reshape(combined(each, share, x.dtype), x.shape)
        own = {s.removeprefix(SHARED): of for s, of in block.items() if s.startswith(SHARED)}
        return y + self.shared.emit(own, x, step)

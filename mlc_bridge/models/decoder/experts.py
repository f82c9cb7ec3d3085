"""A mixture instead of the MLP: every token goes through a few of many MLPs.

    y = sum_c share_c * expert_c(x)   + shared(x), or sigmoid(gate . x) * shared(x)

``router`` chooses and weighs (``router.py``); ``shared`` is an MLP that every token goes through.
In ``gate_up`` and ``down`` the checkpoint's paths have an expert number ``{}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.mlp import Activation, Gated
from mlc_bridge.models.decoder.part import Block, Path, Step, Weights, matrix
from mlc_bridge.models.decoder.router import Router

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

GATE_UP: Path = ("mlp.moe_gate_up_proj", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
DOWN: Path = ("mlp.moe_down_proj", "mlp.experts.{}.down_proj")
SHARED = "shared_"


def shared_mlp(
    inner: int, path: str, activation: Activation = "silu", *, bias: bool = False
) -> Gated:
    """The gated MLP at ``path``, under the names that MLC gives it."""
    gate_up = tuple(f"{path}.{part}_proj" for part in ("gate_up", "gate", "up"))
    return Gated(inner, activation, bias, gate_up=gate_up, down=(f"{path}.down_proj",) * 2)


@dataclass(frozen=True)
class Clamp:
    """gate sigmoid(alpha gate) (up + 1), the gate at most ``limit`` and up within it."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class Experts:
    router: Router
    count: int
    inner: int
    gate_up: Path = GATE_UP
    down: Path = DOWN
    activation: Activation | Clamp = "silu"
    bias: bool = False
    shared: Gated | None = None
    shared_gate: Path | None = None

    def weights(self, hidden: int) -> Weights:
        slots = {
            **self.router.weights(hidden, self.count),
            "expert_gate_up": self._stack(self.gate_up, (self.inner, self.inner), hidden),
            "expert_down": self._stack(self.down, (hidden,), self.inner),
        }
        if self.shared is not None:
            slots |= {f"{SHARED}{s}": w for s, w in self.shared.weights(hidden).items()}
        if self.shared_gate is not None:
            slots["shared_gate"] = matrix(self.shared_gate, (1,), hidden, role="router")
        return slots

    def _stack(self, names: Path, rows: tuple[int, ...], k: int) -> Weight:
        path, *parts = names
        sources = tuple(part.format(number) for number in range(self.count) for part in parts)
        rows = rows if len(parts) == len(rows) else (sum(rows),)
        return Weight(path, sources, rows, k, bias=self.bias, experts=self.count)

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder.mixture import combined

        b, s, hidden = x.shape
        chosen, share = self.router.emit(block, x)
        both = block["expert_gate_up"](op.reshape(x, (b * s, hidden)), chosen)
        each = block["expert_down"](self._inner(both), chosen, "float32")
        y = op.reshape(combined(each, share, x.dtype), x.shape)
        return y if self.shared is None else y + self._shared(block, x, step)

    def _inner(self, both: nn.Tensor) -> nn.Tensor:
        from mlc_bridge.models.decoder.layers import gated
        from mlc_bridge.models.decoder.mixture import clamped

        if isinstance(self.activation, Clamp):
            return clamped(both, self.activation.alpha, self.activation.limit)
        return gated(both, self.activation)

    def _shared(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from mlc_bridge.models.decoder.mixture import opened

        assert self.shared is not None
        inner = {s.removeprefix(SHARED): of for s, of in block.items() if s.startswith(SHARED)}
        y = self.shared.emit(inner, x, step)
        return y if self.shared_gate is None else opened(y, block["shared_gate"](x, "float32"))

"""Which experts a token goes to, and the share of each.

    p      = softmax(s) or sigmoid(s)            over all experts, s = gate(x) in float32
    chosen = the ``chosen`` best of p + correction, among the experts of the ``best_groups``
    share  = p[chosen],   / (their sum + ``floor``) where ``renormalize``,   * ``scale``

``correction`` (DeepSeek V3's balance of load) decides who is chosen and never how much. A group of
experts is as good as the sum of its ``top`` best. A softmax over the chosen scores alone (Mixtral,
gpt-oss) is the one over all, made to sum 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.part import Block, Path, Weights, matrix

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Router:
    chosen: int
    renormalize: bool
    score: Score = "softmax"
    scale: float = 1.0
    floor: float = 0.0
    groups: int = 1
    best_groups: int = 1
    top: int = 2
    gate: Path = ("mlp.gate", "mlp.gate")
    bias: bool = False
    correction: Path | None = None
    """Whole names: ``("mlp.gate.e_score_correction_bias",) * 2``."""

    def weights(self, hidden: int, count: int) -> Weights:
        slots = {"router": matrix(self.gate, (count,), hidden, role="router", bias=self.bias)}
        if self.correction is not None:
            ours, theirs = self.correction
            slots["correction"] = Weight(ours, (theirs,), (count,), 0, "plain")
        return slots

    def emit(self, block: Block, x: nn.Tensor) -> tuple[nn.Tensor, nn.Tensor]:
        """``x [b, s, hidden]`` -> chosen ``int32 [m, c]``, shares ``float32 [m, c]``; m = b * s."""
        from mlc_bridge.models.decoder.choice import choose

        return choose(block["router"](x, "float32"), self, block.get("correction"))

"""What the Granites share: four multipliers, of embedding, scores, residual branches and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.classic import ClassicConfig
from mlc_bridge.models.decoder.settings import Settings

MULTIPLIERS = (
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
)


@dataclass(frozen=True, kw_only=True)
class Multiplied(ClassicConfig):
    """``logits_scaling`` divides."""

    embedding_multiplier: float
    attention_multiplier: float
    residual_multiplier: float
    logits_scaling: float

    def outer(self) -> dict[str, Any]:
        """What ``Decoder.of`` is told of them."""
        return {
            "tied": self.tie_word_embeddings,
            "embed_scale": self.embedding_multiplier,
            "logit_scale": 1.0 / self.logits_scaling,
        }


def multipliers(flat: Settings) -> dict[str, Any]:
    return {key: hf_config.number(flat, key) for key in MULTIPLIERS}

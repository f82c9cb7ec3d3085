"""The config of classic decoders that MLC LLM does not know: HF's own keys, as its block.

A model adds its switches by inheritance and reads them beside ``classic_fields``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.config import common
from mlc_bridge.models.decoder.mlp import Activation
from mlc_bridge.models.decoder.rope import Rope
from mlc_bridge.models.decoder.scaling import Scaled, scaling_of
from mlc_bridge.models.decoder.settings import Settings

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


@dataclass(frozen=True, kw_only=True)
class ClassicConfig(Scaled):
    tie_word_embeddings: bool
    hidden_act: str
    rope_theta: float
    partial_rotary_factor: float

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.hidden_act]

    def rope(self, *, interleaved: bool = False) -> Rope:
        width = int(self.head_dim * self.partial_rotary_factor)
        return self.scaled_rope(self.rope_theta, width, interleaved=interleaved)


def classic_fields(
    flat: Settings, theta: float = 10_000, *, partial: bool = False, layers: str | None = None
) -> dict[str, Any]:
    """The fields of ``ClassicConfig``; ``theta`` is the class's own base, ``layers`` the type of
    layer whose rotary embedding is meant where types differ.
    """
    block = flat.get("rope_parameters") or {}
    fraction = block.get("partial_rotary_factor") or flat.get("partial_rotary_factor") or 1.0
    return {
        **common(flat),
        "tie_word_embeddings": bool(flat.get("tie_word_embeddings", False)),
        "hidden_act": hf_config.expect(flat, "hidden_act", ACTIVATIONS),
        "rope_theta": hf_config.rope_theta(flat, theta, layers),
        "rope_scaling": scaling_of(flat, layers, partial=partial),
        "partial_rotary_factor": fraction if partial else 1.0,
    }

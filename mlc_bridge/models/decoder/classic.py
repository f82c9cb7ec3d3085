"""The config of classic decoders that MLC LLM does not know: HF's own keys, as its block.

A model adds its switches by inheritance and reads them beside ``classic_fields``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.config import DecoderConfig, common
from mlc_bridge.models.decoder.mlp import Activation
from mlc_bridge.models.decoder.rope import KINDS, Rope, rope_of
from mlc_bridge.models.decoder.settings import Settings

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


@dataclass(frozen=True, kw_only=True)
class ClassicConfig(DecoderConfig):
    """``rope_scaling`` has its ``rope_type``; None for the plain rotary embedding."""

    tie_word_embeddings: bool
    hidden_act: str
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    partial_rotary_factor: float

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.hidden_act]

    def rope(self, *, interleaved: bool = False) -> Rope:
        width = int(self.head_dim * self.partial_rotary_factor)
        return rope_of(self.rope_theta, self.rope_scaling, width, interleaved=interleaved)


def classic_fields(
    flat: Settings, theta: float = 10_000, *, partial: bool = False, layers: str | None = None
) -> dict[str, Any]:
    """The fields of ``ClassicConfig``; ``theta`` is the class's own base, ``layers`` the type of
    layer whose rotary embedding is meant where types differ.
    """
    block = flat.get("rope_parameters") or {}
    fraction = block.get("partial_rotary_factor") or flat.get("partial_rotary_factor") or 1.0
    scaling = hf_config.rope_scaling(flat, KINDS, layers, partial=partial)
    if scaling is not None and scaling["rope_type"] in ("yarn", "llama3"):
        largest = hf_config.integer(flat, "max_position_embeddings", "context_window_size")
        scaling.setdefault("original_max_position_embeddings", largest)
    return {
        **common(flat),
        "tie_word_embeddings": bool(flat.get("tie_word_embeddings", False)),
        "hidden_act": hf_config.expect(flat, "hidden_act", ACTIVATIONS),
        "rope_theta": hf_config.rope_theta(flat, theta, layers),
        "rope_scaling": scaling,
        "partial_rotary_factor": fraction if partial else 1.0,
    }

"""The config of classic decoders that MLC LLM does not know: HF's own keys, as its block.

A model adds its switches by inheritance and reads them beside ``classic_fields``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.errors import ConfigError
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

    def __post_init__(self) -> None:
        """ConfigError where a prompt could come in pieces that rotate differently."""
        if self._stretched and self.prefill_chunk_size < self.context_window_size:
            raise ConfigError(
                "dynamic rope beyond the length of training: a prompt must be read at once",
                where="prefill_chunk_size",
                found=self.prefill_chunk_size,
                expected=f"{self.context_window_size}, the context",
                todo="Raise it, or keep the context within max_position_embeddings",
            )

    @property
    def _dynamic(self) -> bool:
        return self.rope_scaling is not None and self.rope_scaling["rope_type"] == "dynamic"

    @property
    def _stretched(self) -> bool:
        """Whether ``dynamic`` rope is anything but plain: it is while all is trained."""
        scaling = self.rope_scaling or {}
        trained = scaling.get("original_max_position_embeddings", 0)
        return self._dynamic and self.context_window_size > trained

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.hidden_act]

    def rope(self, *, interleaved: bool = False) -> Rope:
        width, scaling = int(self.head_dim * self.partial_rotary_factor), self.rope_scaling
        scaling = None if self._dynamic and not self._stretched else scaling
        return rope_of(self.rope_theta, scaling, width, interleaved=interleaved)


def classic_fields(
    flat: Settings, theta: float = 10_000, *, partial: bool = False, layers: str | None = None
) -> dict[str, Any]:
    """The fields of ``ClassicConfig``; ``theta`` is the class's own base, ``layers`` the type of
    layer whose rotary embedding is meant where types differ.
    """
    block = flat.get("rope_parameters") or {}
    fraction = block.get("partial_rotary_factor") or flat.get("partial_rotary_factor") or 1.0
    scaling = hf_config.rope_scaling(flat, KINDS, layers, partial=partial)
    if scaling is not None and scaling["rope_type"] in ("yarn", "llama3", "dynamic"):
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

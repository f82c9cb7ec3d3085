"""Mistral: a llama whose every layer may look back over a sliding window only.

MLC gives up the context limit (-1) for a window, because its cache then rolls; here the window is
a mask, exact as in Hugging Face, so the context limit stays what the checkpoint says. An engine is
told of no window (``sliding_window_size`` -1 in lib and chat config): one that rolled its cache
under the mask would forget twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Pre,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.config import common
from mlc_bridge.models.decoder.scaling import Scaled, scaling_of


@dataclass(frozen=True, kw_only=True)
class MistralConfig(Scaled):
    """MLC's ``model_config`` block of a mistral, and what MLC's have not."""

    position_embedding_base: float
    sliding_window_size: int = -1
    attention_sink_size: int = 4
    tie_word_embeddings: bool = False

    unsaid = ("tie_word_embeddings", "rope_scaling")


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
}


class Mistral(DecoderFamily):
    name = "mistral"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> MistralConfig:
        hf_config.expect(flat, "hidden_act", ("silu",), default="silu")
        return MistralConfig(
            **common(flat),
            position_embedding_base=hf_config.rope_theta(flat),
            sliding_window_size=hf_config.window(flat, "sliding_window_size", "sliding_window"),
            attention_sink_size=hf_config.integer(flat, "attention_sink_size", default=4, least=-1),
            tie_word_embeddings=bool(flat["tie_word_embeddings"]),
            rope_scaling=scaling_of(flat),
        )

    def decoder(self, config: MistralConfig) -> Decoder:
        norm, window = Norm(config.rms_norm_eps), config.sliding_window_size
        rope = config.scaled_rope(config.position_embedding_base)
        attention = Attention.of(config, rope=rope, window=window if window > 0 else None)
        layer = Layer(attention, Gated(config.intermediate_size), Pre(norm))
        layers = (layer,) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


MISTRAL = Mistral()

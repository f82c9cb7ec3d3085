"""Gemma 1: a llama with tanh-GELU, scaled embeddings, and norm weights stored minus one."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Pre,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.hf_config import GELU_TANH


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(ClassicConfig):
    attention_bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": GELU_TANH,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
}


class Gemma(DecoderFamily):
    name = "gemma"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> GemmaConfig:
        hf_config.expect(flat, "tie_word_embeddings", (True,))
        hf_config.expect(flat, "hidden_activation", (None, GELU_TANH))
        fields = classic_fields(flat)
        fields["hidden_act"] = GELU_TANH  # "gelu" in old configs means the same
        return GemmaConfig(**fields, attention_bias=bool(flat["attention_bias"]))

    def decoder(self, config: GemmaConfig) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps, offset=1.0), config.attention_bias
        attention = Attention.of(config, config.rope(), bias=bias, o_bias=bias)
        layer = Layer(attention, Gated(config.intermediate_size, config.activation), Pre(norm))
        layers = (layer,) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=True, embed_scale=config.hidden_size**0.5)


GEMMA = Gemma()

"""Granite 3: a llama with four multipliers: of embedding, scores, residual branches and logits."""

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
    classic_fields,
)
from mlc_bridge.models.decoder.multipliers import Multiplied, multipliers


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(Multiplied):
    attention_bias: bool
    mlp_bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


class Granite(DecoderFamily):
    name = "granite"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> GraniteConfig:
        return GraniteConfig(
            **classic_fields(flat),
            attention_bias=bool(flat["attention_bias"]),
            mlp_bias=bool(flat["mlp_bias"]),
            **multipliers(flat),
        )

    def decoder(self, config: GraniteConfig) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.attention_bias
        attention = Attention.of(
            config, config.rope(), bias=bias, o_bias=bias, multiplier=config.attention_multiplier
        )
        mlp = Gated(config.intermediate_size, config.activation, bias=config.mlp_bias)
        layer = Layer(attention, mlp, Pre(norm, scale=config.residual_multiplier))
        return Decoder.of(config, (layer,) * config.num_hidden_layers, norm, **config.outer())


GRANITE = Granite()

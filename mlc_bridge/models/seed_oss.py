"""Seed-OSS: a llama with biases on query, key and value, and heads wider than hidden / heads."""

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
)


@dataclass(frozen=True, kw_only=True)
class SeedOssConfig(ClassicConfig):
    attention_bias: bool
    attention_out_bias: bool
    mlp_bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 155136,
    "hidden_size": 4096,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 524288,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "attention_out_bias": False,
    "mlp_bias": False,
}


class SeedOss(DecoderFamily):
    name = "seed_oss"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> SeedOssConfig:
        return SeedOssConfig(
            **classic_fields(flat),
            attention_bias=bool(flat["attention_bias"]),
            attention_out_bias=bool(flat["attention_out_bias"]),
            mlp_bias=bool(flat["mlp_bias"]),
        )

    def decoder(self, config: SeedOssConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        attention = Attention.of(
            config,
            config.rope(),
            bias=config.attention_bias,
            o_bias=config.attention_out_bias,
        )
        mlp = Gated(config.intermediate_size, config.activation, bias=config.mlp_bias)
        layers = (Layer(attention, mlp, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


SEED_OSS = SeedOss()

"""GLM-4-0414: norms before and after each block, neighbours rotated, half of each head."""

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
    Sandwich,
    Settings,
    classic_fields,
)


@dataclass(frozen=True, kw_only=True)
class Glm4Config(ClassicConfig):
    attention_bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}


class Glm4(DecoderFamily):
    name = "glm4"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Glm4Config:
        fields = classic_fields(flat, partial=True)
        return Glm4Config(**fields, attention_bias=bool(flat["attention_bias"]))

    def decoder(self, config: Glm4Config) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        rope = config.rope(interleaved=True)
        attention = Attention.of(config, rope, bias=config.attention_bias)
        mlp = Gated(
            config.intermediate_size,
            config.activation,
            gate_up=("mlp.gate_up_proj", "mlp.gate_up_proj"),
        )
        join = Sandwich(
            norm,
            before_mlp=("post_attention_layernorm",) * 2,
            after_mixer=("post_self_attn_layernorm",) * 2,
            after_mlp=("post_mlp_layernorm",) * 2,
        )
        layers = (Layer(attention, mlp, join),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


GLM4 = Glm4()

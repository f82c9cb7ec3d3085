"""InternLM 3: a llama with a switch for the biases of query, key and value, one for all others."""

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
class InternLM3Config(ClassicConfig):
    qkv_bias: bool
    bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 128512,
    "hidden_size": 4096,
    "intermediate_size": 10240,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


class InternLM3(DecoderFamily):
    name = "internlm3"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> InternLM3Config:
        """The hub's names of both switches, or those of transformers."""
        attention, mlp = bool(flat.get("attention_bias")), bool(flat.get("mlp_bias"))
        return InternLM3Config(
            **classic_fields(flat),
            qkv_bias=bool(flat.get("qkv_bias", attention)),
            bias=bool(flat.get("bias", mlp)),
        )

    def decoder(self, config: InternLM3Config) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.bias
        attention = Attention.of(config, config.rope(), bias=config.qkv_bias, o_bias=bias)
        mlp = Gated(config.intermediate_size, config.activation, bias=bias)
        layers = (Layer(attention, mlp, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


INTERNLM3 = InternLM3()

"""ERNIE 4.5, dense: a llama that rotates neighbours; one switch for all biases."""

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
class Ernie45Config(ClassicConfig):
    use_bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "use_bias": False,
}


class Ernie45(DecoderFamily):
    name = "ernie4_5"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Ernie45Config:
        return Ernie45Config(**classic_fields(flat, 500_000), use_bias=bool(flat["use_bias"]))

    def decoder(self, config: Ernie45Config) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.use_bias
        rope = config.rope(interleaved=True)
        attention = Attention.of(config, rope, bias=bias, o_bias=bias)
        mlp = Gated(config.intermediate_size, config.activation, bias=bias)
        layers = (Layer(attention, mlp, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


ERNIE4_5 = Ernie45()

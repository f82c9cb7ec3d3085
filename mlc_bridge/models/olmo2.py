"""OLMo 2: norms after the blocks instead of before, and over all query and all key heads."""

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
    Post,
    Settings,
    classic_fields,
)


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(ClassicConfig):
    attention_bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


class Olmo2(DecoderFamily):
    name = "olmo2"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Olmo2Config:
        return Olmo2Config(**classic_fields(flat), attention_bias=bool(flat["attention_bias"]))

    def decoder(self, config: Olmo2Config) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.attention_bias
        attention = Attention.of(
            config, config.rope(), bias=bias, o_bias=bias, norm=norm, together=True
        )
        layer = Layer(attention, Gated(config.intermediate_size, config.activation), Post(norm))
        layers = (layer,) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


OLMO2 = Olmo2()

"""Hunyuan, dense: a llama whose query and key heads are normed after the rotation.

Its ``dynamic`` rope has a fixed ``alpha``: the base is stretched once, whatever the length.
"""

from __future__ import annotations

from mlc_bridge.models.decoder import (
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Pre,
    Settings,
    classic_fields,
)
from mlc_bridge.models.decoder.hunyuan import HunyuanConfig, hunyuan_attention

# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 290943,
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


class HunyuanV1Dense(DecoderFamily):
    name = "hunyuan_v1_dense"
    defaults = DEFAULTS
    rope_keys = ("alpha",)

    def read(self, flat: Settings) -> HunyuanConfig:
        return HunyuanConfig(**classic_fields(flat), attention_bias=bool(flat["attention_bias"]))

    def decoder(self, config: HunyuanConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        attention = hunyuan_attention(config, norm)
        mlp = Gated(config.intermediate_size, config.activation)
        layers = (Layer(attention, mlp, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


HUNYUAN_V1_DENSE = HunyuanV1Dense()

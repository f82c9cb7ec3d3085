"""Nemotron, dense: LayerNorm whose weight is stored minus one, a plain MLP with squared ReLU, half
of each head rotated.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Layer,
    LayerNorm,
    Plain,
    Pre,
    Settings,
    classic_fields,
)


@dataclass(frozen=True, kw_only=True)
class NemotronConfig(ClassicConfig):
    attention_bias: bool
    mlp_bias: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 32,
    "num_attention_heads": 48,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 0.5,
}


class Nemotron(DecoderFamily):
    name = "nemotron"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> NemotronConfig:
        return NemotronConfig(
            **classic_fields(flat, partial=True),
            attention_bias=bool(flat["attention_bias"]),
            mlp_bias=bool(flat["mlp_bias"]),
        )

    def decoder(self, config: NemotronConfig) -> Decoder:
        norm = LayerNorm(config.rms_norm_eps, bias=True, shift=1.0)
        bias = config.attention_bias
        attention = Attention.of(config, config.rope(), bias=bias, o_bias=bias)
        mlp = Plain(config.intermediate_size, config.activation, bias=config.mlp_bias)
        layers = (Layer(attention, mlp, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


NEMOTRON = Nemotron()

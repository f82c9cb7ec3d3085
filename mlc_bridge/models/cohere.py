"""Command R and Aya 23: one LayerNorm (no bias) before attention and MLP, which run side by side;
neighbours are rotated. MLC keeps gate and up apart. Norms on heads (Command R+) are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    LayerNorm,
    Parallel,
    Settings,
    classic_fields,
    hf_config,
)


@dataclass(frozen=True, kw_only=True)
class CohereConfig(ClassicConfig):
    attention_bias: bool
    logit_scale: float


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "logit_scale": 0.0625,
}


class Cohere(DecoderFamily):
    name = "cohere"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> CohereConfig:
        return CohereConfig(
            **classic_fields(flat, 500_000),
            attention_bias=bool(flat["attention_bias"]),
            logit_scale=hf_config.number(flat, "logit_scale"),
        )

    def decoder(self, config: CohereConfig) -> Decoder:
        norm, bias = LayerNorm(config.rms_norm_eps), config.attention_bias
        attention = Attention.of(
            config,
            config.rope(interleaved=True),
            bias=bias,
            o_bias=bias,
            o=("self_attn.out_proj", "self_attn.o_proj"),
        )
        mlp = Gated(config.intermediate_size, config.activation)
        return Decoder.of(
            config,
            (Layer(attention, mlp, Parallel(norm)),) * config.num_hidden_layers,
            norm,
            tied=config.tie_word_embeddings,
            logit_scale=config.logit_scale,
            apart=("gate_up",),
        )


COHERE = Cohere()

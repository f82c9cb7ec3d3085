"""OLMoE: a llama with experts, whose queries and keys are normed over all heads together."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Experts,
    Layer,
    Norm,
    Pre,
    Router,
    Settings,
    classic_fields,
    hf_config,
)


@dataclass(frozen=True, kw_only=True)
class OlmoeConfig(ClassicConfig):
    attention_bias: bool
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": False,
}


class Olmoe(DecoderFamily):
    name = "olmoe"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> OlmoeConfig:
        return OlmoeConfig(
            **classic_fields(flat),
            attention_bias=bool(flat["attention_bias"]),
            num_experts=hf_config.integer(flat, "num_experts", "num_local_experts"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok"),
            norm_topk_prob=bool(flat["norm_topk_prob"]),
        )

    def decoder(self, config: OlmoeConfig) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.attention_bias
        rope = config.rope()
        attention = Attention.of(config, rope, bias=bias, o_bias=bias, norm=norm, together=True)
        experts = Experts(
            Router(config.num_experts_per_tok, config.norm_topk_prob),
            config.num_experts,
            config.intermediate_size,
            activation=config.activation,
        )
        layers = (Layer(attention, experts, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


OLMOE = Olmoe()

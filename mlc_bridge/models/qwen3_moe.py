"""Qwen 3 MoE: qwen3 whose layers have experts instead of one MLP.

The router's softmax runs over all experts; with ``norm_topk_prob`` the chosen weights are scaled to
sum 1. MLC stores the experts of a layer as one parameter, gate and up stacked along the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Decoder,
    DecoderFamily,
    Experts,
    Gated,
    Layer,
    Norm,
    Pre,
    Router,
    Settings,
)
from mlc_bridge.models.decoder.qwen import (
    QWEN_DEFAULTS,
    MoeFields,
    Qwen3Config,
    moe_fields,
    qwen3_attention,
    qwen3_fields,
)


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(MoeFields, Qwen3Config):
    """MLC's ``model_config`` block of a qwen3_moe."""


# Of the class in transformers.
DEFAULTS = {
    **QWEN_DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_local_experts": 128,
}


class Qwen3Moe(DecoderFamily):
    name = "qwen3_moe"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Qwen3MoeConfig:
        return Qwen3MoeConfig(**qwen3_fields(flat), **moe_fields(flat))

    def decoder(self, config: Qwen3MoeConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        experts = Experts(
            Router(config.num_experts_per_tok, config.norm_topk_prob),
            config.num_experts,
            config.moe_intermediate_size,
        )
        attention = qwen3_attention(config, norm)
        mlps = Gated(config.intermediate_size), experts
        layers = (Layer(attention, mlps[sparse], Pre(norm)) for sparse in config.sparse)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


QWEN3_MOE = Qwen3Moe()

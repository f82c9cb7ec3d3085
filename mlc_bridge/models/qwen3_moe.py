"""Qwen 3 MoE: qwen3 whose every layer has experts instead of one MLP.

The router's softmax runs over all experts; with ``norm_topk_prob`` the chosen weights are scaled to
sum 1. MLC stores the experts of a layer as one parameter, gate and up stacked along the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Decoder,
    DecoderFamily,
    Experts,
    Layer,
    Norm,
    Pre,
    Router,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.qwen import QWEN_DEFAULTS, Qwen3Config, qwen3_attention, qwen3_fields


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(Qwen3Config):
    """MLC's ``model_config`` block of a qwen3_moe."""

    moe_intermediate_size: int
    num_experts_per_tok: int
    num_experts: int
    decoder_sparse_step: int = 1
    norm_topk_prob: bool = False


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
        hf_config.expect(flat, "decoder_sparse_step", (1,), default=1)
        hf_config.expect(flat, "mlp_only_layers", ([], None))
        return Qwen3MoeConfig(
            **qwen3_fields(flat),
            moe_intermediate_size=hf_config.integer(flat, "moe_intermediate_size"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok"),
            num_experts=hf_config.integer(flat, "num_experts", "num_local_experts"),
            norm_topk_prob=bool(flat.get("norm_topk_prob", False)),
        )

    def decoder(self, config: Qwen3MoeConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        experts = Experts(
            count=config.num_experts,
            inner=config.moe_intermediate_size,
            router=Router(config.num_experts_per_tok, config.norm_topk_prob),
        )
        layer = Layer(qwen3_attention(config, norm), experts, Pre(norm))
        return Decoder.of(
            config,
            layers=(layer,) * config.num_hidden_layers,
            norm=norm,
            tied=config.tie_word_embeddings,
        )


QWEN3_MOE = Qwen3Moe()

"""Qwen 1.5 and 2 MoE: qwen2 with experts, and beside them an MLP behind a gate of its own."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Experts,
    Gated,
    Layer,
    Norm,
    Pre,
    Router,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.experts import shared_mlp
from mlc_bridge.models.decoder.qwen import (
    C_ATTN,
    QWEN_DEFAULTS,
    MoeFields,
    QwenConfig,
    moe_fields,
    qwen_fields,
)


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(MoeFields, QwenConfig):
    """MLC's ``model_config`` block of a qwen2_moe; ``qkv_bias`` is ours."""

    shared_expert_intermediate_size: int
    qkv_bias: bool = True


# Of the class in transformers.
DEFAULTS = {
    **QWEN_DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "qkv_bias": True,
}


class Qwen2Moe(DecoderFamily):
    name = "qwen2_moe"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Qwen2MoeConfig:
        return Qwen2MoeConfig(
            **qwen_fields(flat, 2048),
            **moe_fields(flat),
            shared_expert_intermediate_size=hf_config.integer(
                flat, "shared_expert_intermediate_size"
            ),
            qkv_bias=bool(flat["qkv_bias"]),
        )

    def decoder(self, config: Qwen2MoeConfig) -> Decoder:
        norm, rope = Norm(config.rms_norm_eps), config.rope
        attention = Attention.of(config, rope, bias=config.qkv_bias, qkv=C_ATTN)
        experts = Experts(
            Router(config.num_experts_per_tok, config.norm_topk_prob),
            config.num_experts,
            config.moe_intermediate_size,
            shared=shared_mlp(config.shared_expert_intermediate_size, "mlp.shared_expert"),
            shared_gate=("mlp.shared_expert_gate",) * 2,
        )
        mlps = Gated(config.intermediate_size), experts
        layers = (Layer(attention, mlps[sparse], Pre(norm)) for sparse in config.sparse)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


QWEN2_MOE = Qwen2Moe()

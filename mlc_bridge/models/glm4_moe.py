"""GLM 4.5 to 4.7: experts behind sigmoids that a correction balances, the first layers dense.

Every token also goes through the shared experts, which are one MLP; half of a head is rotated.
Layers beyond the last (``num_nextn_predict_layers``) predict several tokens at once; they are not
run.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Experts,
    Gated,
    Layer,
    Norm,
    Pre,
    Router,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.experts import shared_mlp


@dataclass(frozen=True, kw_only=True)
class Glm4MoeConfig(ClassicConfig):
    attention_bias: bool
    use_qk_norm: bool
    moe_intermediate_size: int
    num_experts_per_tok: int
    n_routed_experts: int
    n_shared_experts: int
    first_k_dense_replace: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    n_group: int
    topk_group: int


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 42,  # 4096 // 96, which no checkpoint has
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 0.5,
    "attention_bias": False,
    "use_qk_norm": False,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}


class Glm4Moe(DecoderFamily):
    name = "glm4_moe"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Glm4MoeConfig:
        return Glm4MoeConfig(
            **classic_fields(flat, partial=True),
            attention_bias=bool(flat["attention_bias"]),
            use_qk_norm=bool(flat["use_qk_norm"]),
            moe_intermediate_size=hf_config.integer(flat, "moe_intermediate_size"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok"),
            n_routed_experts=hf_config.integer(flat, "n_routed_experts", "num_local_experts"),
            n_shared_experts=hf_config.integer(flat, "n_shared_experts"),
            first_k_dense_replace=hf_config.integer(flat, "first_k_dense_replace", least=0),
            routed_scaling_factor=hf_config.number(flat, "routed_scaling_factor"),
            norm_topk_prob=bool(flat["norm_topk_prob"]),
            n_group=hf_config.integer(flat, "n_group"),
            topk_group=hf_config.integer(flat, "topk_group"),
        )

    def decoder(self, config: Glm4MoeConfig) -> Decoder:
        norm, act = Norm(config.rms_norm_eps), config.activation
        heads = norm if config.use_qk_norm else None
        attention = Attention.of(config, config.rope(), bias=config.attention_bias, norm=heads)
        inner, count = config.moe_intermediate_size, config.n_routed_experts
        shared = shared_mlp(inner * config.n_shared_experts, "mlp.shared_experts", act)
        experts = Experts(self._router(config), count, inner, activation=act, shared=shared)
        dense, first = Gated(config.intermediate_size, act), config.first_k_dense_replace
        mlps = (dense if i < first else experts for i in range(config.num_hidden_layers))
        layers = (Layer(attention, mlp, Pre(norm)) for mlp in mlps)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)

    def _router(self, config: Glm4MoeConfig) -> Router:
        return Router(
            config.num_experts_per_tok,
            config.norm_topk_prob,
            "sigmoid",
            scale=config.routed_scaling_factor,
            floor=1e-20,
            groups=config.n_group,
            best_groups=config.topk_group,
            correction=("mlp.gate.e_score_correction_bias",) * 2,
        )


GLM4_MOE = Glm4Moe()

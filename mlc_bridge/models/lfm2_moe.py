"""LFM2 MoE; see ``decoder/lfm.py``. Sigmoid shares; a correction decides who is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Decoder,
    DecoderFamily,
    Experts,
    Norm,
    Router,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.lfm import (
    LFM_DEFAULTS,
    NAMES,
    RENAMED,
    LfmConfig,
    dense,
    layer,
    lfm_fields,
)

EXPERT = "feed_forward.experts.{}"
DEFAULTS = {
    **LFM_DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}


@dataclass(frozen=True, kw_only=True)
class Lfm2MoeConfig(LfmConfig):
    moe_intermediate_size: int
    num_dense_layers: int
    num_experts: int
    num_experts_per_tok: int
    use_expert_bias: bool
    routed_scaling_factor: float
    norm_topk_prob: bool


class Lfm2Moe(DecoderFamily):
    name = "lfm2_moe"
    defaults = DEFAULTS
    renamed = RENAMED

    def read(self, flat: Settings) -> Lfm2MoeConfig:
        return Lfm2MoeConfig(
            **lfm_fields(flat),
            moe_intermediate_size=hf_config.integer(flat, "moe_intermediate_size"),
            num_experts=hf_config.integer(flat, "num_experts"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok"),
            num_dense_layers=hf_config.integer(flat, "num_dense_layers", least=0),
            use_expert_bias=bool(flat["use_expert_bias"]),
            routed_scaling_factor=hf_config.number(flat, "routed_scaling_factor"),
            norm_topk_prob=bool(flat["norm_topk_prob"]),
        )

    def decoder(self, config: Lfm2MoeConfig) -> Decoder:
        mlp, experts = dense(config.intermediate_size), _experts(config)
        layers = (
            layer(config, kind, mlp if index < config.num_dense_layers else experts)
            for index, kind in enumerate(config.layer_types)
        )
        norm, tied = Norm(config.rms_norm_eps), config.tie_word_embeddings
        return Decoder.of(config, layers, norm, tied=tied, names=NAMES)


def _experts(config: Lfm2MoeConfig) -> Experts:
    return Experts(
        Router(
            config.num_experts_per_tok,
            config.norm_topk_prob,
            "sigmoid",
            config.routed_scaling_factor,
            floor=1e-6,
            gate=("feed_forward.gate",) * 2,
            correction=("feed_forward.expert_bias",) * 2 if config.use_expert_bias else None,
        ),
        config.num_experts,
        config.moe_intermediate_size,
        gate_up=("feed_forward.moe_w1_w3", f"{EXPERT}.w1", f"{EXPERT}.w3"),
        down=("feed_forward.moe_w2", f"{EXPERT}.w2"),
    )


LFM2_MOE = Lfm2Moe()

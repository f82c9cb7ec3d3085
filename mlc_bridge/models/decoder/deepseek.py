"""What the models with latent attention share: config fields, attention, layers.

The first layers have one MLP, the others a mixture beside an MLP for every token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.classic import ClassicConfig, classic_fields
from mlc_bridge.models.decoder.experts import Experts, shared_mlp
from mlc_bridge.models.decoder.latent import Latent
from mlc_bridge.models.decoder.layer import Layer, Pre
from mlc_bridge.models.decoder.mlp import Gated
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.rope import rope_of
from mlc_bridge.models.decoder.router import Router
from mlc_bridge.models.decoder.settings import Settings

DENSE, SPARSE = "dense", "sparse"
SIZES = (
    "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "n_routed_experts",
    "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
)  # fmt: skip
RENAMED = {
    "num_local_experts": "n_routed_experts",
    "num_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}
# Of training and of how the work is split; layers that predict further ahead are left out.
HARMLESS = (
    "aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers", "qk_head_dim", "head_dim",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DeepseekConfig(ClassicConfig):
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    n_group: int
    topk_group: int
    mlp_layer_types: list[str]
    attention_bias: bool
    rope_interleave: bool

    @property
    def score_scale(self) -> float:
        """Of the scores: the head's width, and what yarn adds for a longer context."""
        scaling, scale = self.rope_scaling or {}, (self.qk_nope_head_dim + self.head_dim) ** -0.5
        if (every := scaling.get("mscale_all_dim")) and scaling["factor"] > 1:
            scale *= (0.1 * every * math.log(scaling["factor"]) + 1.0) ** 2
        return scale


def deepseek_fields(flat: Settings, theta: float = 10_000) -> dict[str, Any]:
    for key in HARMLESS:
        flat.get(key)
    hf_config.expect(flat, "moe_layer_freq", (1, None))
    width = hf_config.integer(flat, "qk_rope_head_dim")
    layers, first = hf_config.integer(flat, "num_hidden_layers"), flat["first_k_dense_replace"] or 0
    kinds = flat.get("mlp_layer_types") or [SPARSE if i >= first else DENSE for i in range(layers)]
    return {
        **classic_fields(flat.having(head_dim=width), theta, partial=True),
        "partial_rotary_factor": 1.0,  # of the head_dim above
        **{key: hf_config.integer(flat, key) for key in SIZES},
        "q_lora_rank": hf_config.integer(flat, "q_lora_rank", default=0, least=0) or None,
        "routed_scaling_factor": hf_config.number(flat, "routed_scaling_factor"),
        "norm_topk_prob": bool(flat["norm_topk_prob"]),
        "n_group": hf_config.integer(flat, "n_group", default=1),
        "topk_group": hf_config.integer(flat, "topk_group", default=1),
        "mlp_layer_types": hf_config.kinds_of_layers(flat, kinds, (DENSE, SPARSE)),
        "attention_bias": bool(flat["attention_bias"]),
        "rope_interleave": bool(flat["rope_interleave"]),
    }


def layers(config: DeepseekConfig, router: Router) -> Iterator[Layer]:
    dense, experts = Gated(config.intermediate_size, config.activation), _mixture(config, router)
    attention, join = latent(config), Pre(Norm(config.rms_norm_eps))
    for kind in config.mlp_layer_types:
        yield Layer(attention, dense if kind == DENSE else experts, join)


def latent(config: DeepseekConfig) -> Latent:
    scaling, width = config.rope_scaling or {}, config.qk_rope_head_dim
    rope = rope_of(
        config.rope_theta, config.rope_scaling, width, interleaved=config.rope_interleave
    )
    if beta := scaling.get("llama_4_scaling_beta"):
        rope = replace(rope, growth=(beta, scaling["original_max_position_embeddings"]))
    return Latent(
        config.num_attention_heads,
        config.kv_lora_rank,
        config.q_lora_rank,
        width,
        config.qk_nope_head_dim,
        config.v_head_dim,
        rope,
        config.score_scale,
        config.attention_bias,
    )


def _mixture(config: DeepseekConfig, router: Router) -> Experts:
    shared = config.moe_intermediate_size * config.n_shared_experts
    return Experts(
        router,
        config.n_routed_experts,
        config.moe_intermediate_size,
        activation=config.activation,
        shared=shared_mlp(shared, "mlp.shared_experts", config.activation),
    )


def corrected(config: DeepseekConfig) -> Router:
    """Sigmoid shares; a correction decides who is chosen (DeepSeek V3)."""
    return replace(
        grouped(config),
        score="sigmoid",
        correction=("mlp.gate.e_score_correction_bias",) * 2,
    )


def grouped(config: DeepseekConfig) -> Router:
    """Shares of a softmax, chosen from the best groups of experts."""
    return Router(
        config.num_experts_per_tok,
        config.norm_topk_prob,
        scale=config.routed_scaling_factor,
        floor=1e-20,
        groups=config.n_group,
        best_groups=config.topk_group,
    )

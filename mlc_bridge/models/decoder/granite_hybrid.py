"""The parts of Granite 4: config, mixers, and what every token goes through."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlc_bridge.models.decoder.attention import Attention
from mlc_bridge.models.decoder.classic import ClassicConfig
from mlc_bridge.models.decoder.experts import Experts
from mlc_bridge.models.decoder.mamba2 import Mamba2
from mlc_bridge.models.decoder.mlp import Gated
from mlc_bridge.models.decoder.router import Router

FULL, LINEAR = "full_attention", "linear_attention"
OLD = {"attention": FULL, "mamba": LINEAR}
MOE = "block_sparse_moe"
INFINITE = (math.inf, {"__float__": "Infinity"})  # as transformers 5 writes it


@dataclass(frozen=True, kw_only=True)
class GraniteMoeHybridConfig(ClassicConfig):
    attention_bias: bool
    embedding_multiplier: float
    attention_multiplier: float
    residual_multiplier: float
    logits_scaling: float
    position_embedding_type: str | None
    layer_types: list[str]
    num_local_experts: int
    num_experts_per_tok: int
    shared_intermediate_size: int
    mamba_n_heads: int
    mamba_n_groups: int
    mamba_d_state: int
    mamba_d_head: int
    mamba_d_conv: int
    mamba_conv_bias: bool
    mamba_proj_bias: bool
    time_step_limit: list[float | None]
    """Least and largest step; null for no bound."""


def mixer(config: GraniteMoeHybridConfig, kind: str) -> Attention | Mamba2:
    if kind == FULL:
        rope = config.rope() if config.position_embedding_type == "rope" else None
        bias, scale = config.attention_bias, config.attention_multiplier
        return Attention.of(config, rope, bias=bias, o_bias=bias, multiplier=scale)
    least, largest = config.time_step_limit
    return Mamba2(
        "mamba",
        config.mamba_n_heads,
        config.mamba_d_head,
        config.mamba_n_groups,
        config.mamba_d_state,
        config.mamba_d_conv,
        config.rms_norm_eps,
        config.mamba_proj_bias,
        config.mamba_conv_bias,
        (least or 0.0, largest),
    )


def mlp(config: GraniteMoeHybridConfig) -> Gated | Experts:
    shared = Gated(
        config.shared_intermediate_size,
        config.activation,
        gate_up=("shared_mlp.input_linear",) * 2,
        down=("shared_mlp.output_linear",) * 2,
    )
    if not config.num_local_experts:
        return shared
    path = f"{MOE}.experts.{{}}"
    return Experts(
        Router(
            config.num_experts_per_tok,
            renormalize=True,
            gate=(f"{MOE}.router", f"{MOE}.router.layer"),
        ),
        config.num_local_experts,
        config.intermediate_size,
        gate_up=(f"{MOE}.gate_up_proj", f"{path}.gate_proj", f"{path}.up_proj"),
        down=(f"{MOE}.down_proj", f"{path}.down_proj"),
        activation=config.activation,
        shared=shared,
    )

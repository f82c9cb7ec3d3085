"""Granite 4: granite whose layers are Mamba 2 or attention (mostly without positions), with one MLP
for every token and, in the larger ones, experts beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Experts,
    Gated,
    Layer,
    Mamba2,
    Norm,
    Pre,
    Router,
    Settings,
    classic_fields,
    hf_config,
)

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


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 1024,
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


class GraniteMoeHybrid(DecoderFamily):
    name = "granitemoehybrid"
    defaults = DEFAULTS
    renamed = {"layers_block_type": "layer_types"}  # noqa: RUF012

    def read(self, flat: Settings) -> GraniteMoeHybridConfig:
        for key in ("mamba_chunk_size", "init_method"):  # of HF's work, and of training
            flat.get(key)
        hf_config.expect(flat, "normalization_function", ("rmsnorm", None))
        layers = hf_config.integer(flat, "num_hidden_layers")
        kinds = [OLD.get(k, k) for k in flat.get("layer_types") or [LINEAR] * layers]
        heads = hf_config.integer(flat, "mamba_n_heads")
        wide = hf_config.integer(flat, "mamba_expand") * hf_config.integer(flat, "hidden_size")
        auto = flat.get("mamba_d_head") in (None, "auto")
        least, largest = flat.get("time_step_limit") or (0.0, None)
        return GraniteMoeHybridConfig(
            **classic_fields(flat),
            attention_bias=bool(flat["attention_bias"]),
            embedding_multiplier=hf_config.number(flat, "embedding_multiplier"),
            attention_multiplier=hf_config.number(flat, "attention_multiplier"),
            residual_multiplier=hf_config.number(flat, "residual_multiplier"),
            logits_scaling=hf_config.number(flat, "logits_scaling"),
            position_embedding_type=flat.get("position_embedding_type"),
            layer_types=hf_config.kinds_of_layers(flat, kinds, (FULL, LINEAR)),
            num_local_experts=hf_config.integer(flat, "num_local_experts", least=0),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok", least=0),
            shared_intermediate_size=hf_config.integer(flat, "shared_intermediate_size"),
            mamba_n_heads=heads,
            mamba_n_groups=hf_config.integer(flat, "mamba_n_groups"),
            mamba_d_state=hf_config.integer(flat, "mamba_d_state"),
            mamba_d_head=wide // heads if auto else hf_config.integer(flat, "mamba_d_head"),
            mamba_d_conv=hf_config.integer(flat, "mamba_d_conv", least=2),
            mamba_conv_bias=bool(flat["mamba_conv_bias"]),
            mamba_proj_bias=bool(flat["mamba_proj_bias"]),
            time_step_limit=[least, None if largest in INFINITE else largest],
        )

    def decoder(self, config: GraniteMoeHybridConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        join, mlp = Pre(norm, scale=config.residual_multiplier), _mlp(config)
        layers = (Layer(_mixer(config, kind), mlp, join) for kind in config.layer_types)
        return Decoder.of(
            config,
            layers,
            norm,
            tied=config.tie_word_embeddings,
            embed_scale=config.embedding_multiplier,
            logit_scale=1.0 / config.logits_scaling,
        )


def _mixer(config: GraniteMoeHybridConfig, kind: str) -> Attention | Mamba2:
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


def _mlp(config: GraniteMoeHybridConfig) -> Gated | Experts:
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


GRANITEMOEHYBRID = GraniteMoeHybrid()

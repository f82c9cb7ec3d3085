"""Mellum 2: qwen3_moe with local layers; global ones may stretch their angles (yarn)."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    Rope,
    Router,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.hf_config import FULL, LOCAL
from mlc_bridge.models.decoder.part import Part

DENSE, SPARSE = "dense", "sparse"


@dataclass(frozen=True, kw_only=True)
class MellumConfig(ClassicConfig):
    """``rope_theta`` and ``rope_scaling`` are those of global layers."""

    attention_bias: bool
    sliding_window: int | None
    layer_types: list[str]
    mlp_layer_types: list[str]
    rope_local_base_freq: float
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "sliding_window": 1024,
    "moe_intermediate_size": 896,
    "num_experts_per_tok": 8,
    "num_local_experts": 64,
    "norm_topk_prob": True,
}


class Mellum(DecoderFamily):
    name = "mellum"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> MellumConfig:
        hf_config.rope_scaling({"rope_parameters": flat.get("rope_parameters")}, (), LOCAL)
        usual = [SPARSE] * hf_config.integer(flat, "num_hidden_layers")
        return MellumConfig(
            **classic_fields(flat, 500_000, layers=FULL),
            attention_bias=bool(flat["attention_bias"]),
            sliding_window=flat["sliding_window"],
            layer_types=hf_config.layer_types(flat, 1),
            mlp_layer_types=hf_config.kinds_of_layers(
                flat, flat.get("mlp_layer_types") or usual, (DENSE, SPARSE), "mlp_layer_types"
            ),
            rope_local_base_freq=hf_config.local_theta(flat, flat.get("rope_theta") or 10_000),
            moe_intermediate_size=hf_config.integer(flat, "moe_intermediate_size"),
            num_experts=hf_config.integer(flat, "num_experts", "num_local_experts"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok"),
            norm_topk_prob=bool(flat["norm_topk_prob"]),
        )

    def decoder(self, config: MellumConfig) -> Decoder:
        norm, bias, act = Norm(config.rms_norm_eps), config.attention_bias, config.activation
        full = Attention.of(config, config.rope(), bias=bias, o_bias=bias, norm=norm)
        rope = Rope(config.rope_local_base_freq, rotary_dim=config.head_dim)
        mixers = {FULL: full, LOCAL: replace(full, rope=rope, window=config.sliding_window)}
        router = Router(config.num_experts_per_tok, config.norm_topk_prob)
        inner = config.moe_intermediate_size
        mlps: dict[str, Part] = {
            DENSE: Gated(config.intermediate_size, act),
            SPARSE: Experts(router, config.num_experts, inner, activation=act),
        }
        kinds = zip(config.layer_types, config.mlp_layer_types, strict=True)
        layers = (Layer(mixers[kind], mlps[mlp], Pre(norm)) for kind, mlp in kinds)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


MELLUM = Mellum()

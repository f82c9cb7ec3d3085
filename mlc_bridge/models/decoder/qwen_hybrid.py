"""What Qwen 3 Next, Qwen 3.5 and their mixtures share.

Three of four layers are gated DeltaNets, the fourth is attention with a gate on its output and a
quarter of each head rotated; norms are stored minus one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.attention import Attention
from mlc_bridge.models.decoder.classic import ClassicConfig, classic_fields
from mlc_bridge.models.decoder.experts import Experts, shared_mlp
from mlc_bridge.models.decoder.gated_delta import GatedDelta
from mlc_bridge.models.decoder.hf_config import FULL
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.qwen import C_ATTN
from mlc_bridge.models.decoder.router import Router
from mlc_bridge.models.decoder.settings import Settings

LINEAR = "linear_attention"
# Of the classes in transformers.
HYBRID_DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "num_attention_heads": 16,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
HEADS = (
    "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads",
    "linear_num_value_heads",
)  # fmt: skip
# Of layers that predict further ahead, which are left out; the state is float32 in any case.
HARMLESS = ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype")
MIXTURE = (
    "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "shared_expert_intermediate_size",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QwenHybridConfig(ClassicConfig):
    attention_bias: bool
    layer_types: list[str]
    full_attention_interval: int
    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int


@dataclass(frozen=True, kw_only=True)
class QwenHybridMoeConfig(QwenHybridConfig):
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int


def hybrid_fields(flat: Settings) -> dict[str, Any]:
    """The fields of ``QwenHybridConfig``."""
    for key in HARMLESS:
        flat.get(key)
    hf_config.expect(flat, "attn_output_gate", (True, None))
    every = hf_config.integer(flat, "full_attention_interval")
    layers = hf_config.integer(flat, "num_hidden_layers")
    kinds = flat.get("layer_types") or [LINEAR if (i + 1) % every else FULL for i in range(layers)]
    return {
        **classic_fields(flat, partial=True),
        **{key: hf_config.integer(flat, key) for key in HEADS},
        "linear_conv_kernel_dim": hf_config.integer(flat, "linear_conv_kernel_dim", least=2),
        "full_attention_interval": every,
        "layer_types": hf_config.kinds_of_layers(flat, kinds, (FULL, LINEAR)),
        "attention_bias": bool(flat["attention_bias"]),
    }


def mixture_fields(flat: Settings) -> dict[str, Any]:
    """The fields that ``QwenHybridMoeConfig`` adds."""
    return {key: hf_config.integer(flat, key) for key in MIXTURE}


def mixer(
    config: QwenHybridConfig, kind: str, norm: Norm, *, grouped: bool = False
) -> Attention | GatedDelta:
    if kind == FULL:
        bias = config.attention_bias
        return Attention.of(
            config, config.rope(), bias=bias, o_bias=bias, norm=norm, gate=True, qkv=C_ATTN
        )
    return GatedDelta(
        config.linear_num_key_heads,
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
        config.linear_conv_kernel_dim,
        norm.eps,
        grouped=grouped,
    )


def mixture(config: QwenHybridMoeConfig, *, renormalize: bool = True) -> Experts:
    """Experts, and one MLP for every token behind a gate."""
    return Experts(
        Router(config.num_experts_per_tok, renormalize),
        config.num_experts,
        config.moe_intermediate_size,
        activation=config.activation,
        shared=shared_mlp(
            config.shared_expert_intermediate_size, "mlp.shared_expert", config.activation
        ),
        shared_gate=("mlp.shared_expert_gate",) * 2,
    )

"""The parts of Nemotron H: config, what every layer may be, names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.attention import QKV, Attention
from mlc_bridge.models.decoder.config import DecoderConfig
from mlc_bridge.models.decoder.mamba2 import Mamba2
from mlc_bridge.models.decoder.mlp import Plain
from mlc_bridge.models.decoder.model import Names
from mlc_bridge.models.decoder.plain_experts import PlainExperts
from mlc_bridge.models.decoder.router import Router
from mlc_bridge.models.decoder.settings import Settings

PATTERN = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
OLD = {"mamba": "linear_attention", "attention": "full_attention"}
MIXER = "mixer"
NAMES = Names(
    embed=("backbone.embeddings",) * 2,
    layer=("backbone.layers.{}",) * 2,
    norm=("backbone.norm_f",) * 2,
)


@dataclass(frozen=True, kw_only=True)
class NemotronHConfig(DecoderConfig):
    tie_word_embeddings: bool
    layers_block_type: list[str]
    mlp_bias: bool
    use_bias: bool
    use_conv_bias: bool
    mamba_num_heads: int
    mamba_head_dim: int
    n_groups: int
    ssm_state_size: int
    conv_kernel: int
    time_step_min: float
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    moe_shared_expert_intermediate_size: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    n_group: int
    topk_group: int


SIZES = (
    "mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel",
    "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
    "moe_shared_expert_intermediate_size", "n_group", "topk_group",
)  # fmt: skip


def kinds_of(flat: Settings) -> list[str]:
    """What every layer is: a list, or a pattern of letters."""
    pattern = flat.get("hybrid_override_pattern")
    kinds = flat["layers_block_type"] if pattern is None else [PATTERN.get(c, c) for c in pattern]
    found = [OLD.get(kind, kind) for kind in kinds]
    told = {"num_hidden_layers": len(found)}
    return hf_config.kinds_of_layers(told, found, PATTERN.values())


def parts_of(config: NemotronHConfig) -> dict[str, Any]:
    qkv = tuple(path.replace("self_attn", MIXER) for path in QKV)
    return {
        "linear_attention": Mamba2(
            MIXER,
            config.mamba_num_heads,
            config.mamba_head_dim,
            config.n_groups,
            config.ssm_state_size,
            config.conv_kernel,
            config.rms_norm_eps,
            config.use_bias,
            config.use_conv_bias,
            (config.time_step_min, None),
        ),
        "full_attention": Attention.of(config, None, qkv=qkv, o=(f"{MIXER}.o_proj",) * 2),
        "mlp": _mlp(MIXER, config.intermediate_size, bias=config.mlp_bias),
        "moe": _mixture(config),
    }


def _mlp(path: str, inner: int, *, bias: bool) -> Plain:
    up, down = ((f"{path}.{name}_proj",) * 2 for name in ("up", "down"))
    return Plain(inner, "relu2", bias, up, down)


def _mixture(config: NemotronHConfig) -> PlainExperts:
    shared = config.moe_shared_expert_intermediate_size
    return PlainExperts(
        Router(
            config.num_experts_per_tok,
            config.norm_topk_prob,
            "sigmoid",
            config.routed_scaling_factor,
            1e-20,
            config.n_group,
            config.topk_group,
            gate=(f"{MIXER}.gate",) * 2,
            correction=(f"{MIXER}.gate.e_score_correction_bias",) * 2,
        ),
        config.n_routed_experts,
        config.moe_intermediate_size,
        "relu2",
        (f"{MIXER}.moe_up_proj", f"{MIXER}.experts.{{}}.up_proj"),
        (f"{MIXER}.moe_down_proj", f"{MIXER}.experts.{{}}.down_proj"),
        _mlp(f"{MIXER}.shared_experts", shared, bias=config.mlp_bias),
    )

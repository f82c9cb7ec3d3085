"""What Qwen 2, Qwen 3 and their mixtures share: config fields and the fused ``c_attn``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.attention import QKV, Attention
from mlc_bridge.models.decoder.config import DecoderConfig, common
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.rope import Rope
from mlc_bridge.models.decoder.scaling import Scaled, scaling_of

# Of the classes in transformers.
QWEN_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
C_ATTN = ("self_attn.c_attn", *QKV[1:])


@dataclass(frozen=True, kw_only=True)
class QwenConfig(Scaled):
    """MLC's ``model_config`` block of a qwen2, and the beginning of the later ones."""

    hidden_act: str
    rope_theta: float
    tie_word_embeddings: bool = False
    dtype: str = "float32"

    unsaid = ("rope_scaling",)

    @property
    def rope(self) -> Rope:
        return self.scaled_rope(self.rope_theta)


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(QwenConfig):
    """MLC's ``model_config`` block of a qwen3."""

    attention_bias: bool = False
    weight_block_size: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class MoeFields(DecoderConfig):
    """``decoder_sparse_step``: every so many layers have experts, but ``mlp_only_layers``."""

    moe_intermediate_size: int
    num_experts_per_tok: int
    num_experts: int
    decoder_sparse_step: int = 1
    norm_topk_prob: bool = False
    mlp_only_layers: tuple[int, ...] = ()

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Whether each layer has experts."""
        step, dense = self.decoder_sparse_step, self.mlp_only_layers
        return tuple(i not in dense and (i + 1) % step == 0 for i in range(self.num_hidden_layers))

    def asdict(self) -> dict[str, Any]:
        """MLC's block; it knows no ``mlp_only_layers``."""
        block = super().asdict()
        dense = list(block.pop("mlp_only_layers"))
        return {**block, "mlp_only_layers": dense} if dense else block


def moe_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``MoeFields`` beyond those of a decoder."""
    return {
        "moe_intermediate_size": hf_config.integer(flat, "moe_intermediate_size"),
        "num_experts_per_tok": hf_config.integer(flat, "num_experts_per_tok"),
        "num_experts": hf_config.integer(flat, "num_experts", "num_local_experts"),
        "decoder_sparse_step": hf_config.integer(flat, "decoder_sparse_step", default=1),
        "norm_topk_prob": bool(flat.get("norm_topk_prob", False)),
        "mlp_only_layers": tuple(flat.get("mlp_only_layers") or ()),
    }


def qwen_fields(flat: Mapping[str, Any], largest_chunk: int) -> dict[str, Any]:
    """The fields of ``QwenConfig`` from a flat config; layers with a window are refused."""
    layers = hf_config.integer(flat, "num_hidden_layers")
    windowed = hf_config.integer(flat, "max_window_layers", least=0) < layers
    if flat.get("sliding_window") and windowed:
        hf_config.expect(flat, "use_sliding_window", (False, None))
    hf_config.local_layers(flat, 1)
    return {
        **common(flat, largest_chunk),
        "hidden_act": hf_config.expect(flat, "hidden_act", ("silu",), default="silu"),
        "rope_theta": hf_config.rope_theta(flat),
        "rope_scaling": scaling_of(flat),
        "tie_word_embeddings": bool(flat.get("tie_word_embeddings", False)),
        "dtype": str(flat.get("dtype") or "float32"),
    }


def qwen3_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``Qwen3Config`` from a flat config."""
    bias = bool(flat.get("attention_bias", False))
    block = flat.get("weight_block_size")
    return {**qwen_fields(flat, 2048), "attention_bias": bias, "weight_block_size": block}


def qwen3_attention(config: Qwen3Config, norm: Norm) -> Attention:
    """With a norm on every query and key head."""
    return Attention.of(
        config,
        rope=config.rope,
        bias=config.attention_bias,
        o_bias=config.attention_bias,
        norm=norm,
        qkv=C_ATTN,
    )

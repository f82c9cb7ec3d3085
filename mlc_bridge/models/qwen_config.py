"""What Qwen 2, Qwen 3 and Qwen 3 MoE share: config fields and the fused ``c_attn``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlc_bridge.models import hf_config
from mlc_bridge.models.decoder_config import DecoderConfig, common
from mlc_bridge.models.decoder_spec import Names

QWEN_NAMES = Names(qkv=("self_attn.c_attn", *Names.qkv[1:]))


@dataclass(frozen=True, kw_only=True)
class QwenConfig(DecoderConfig):
    """MLC's ``model_config`` block of a qwen2, and the beginning of the later ones."""

    hidden_act: str
    rope_theta: float
    tie_word_embeddings: bool = False
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(QwenConfig):
    """MLC's ``model_config`` block of a qwen3."""

    attention_bias: bool = False
    weight_block_size: list[int] | None = None


def qwen_fields(flat: Mapping[str, Any], largest_chunk: int) -> dict[str, Any]:
    """The fields of ``QwenConfig`` from a flat config; layers with a window are refused."""
    layers = hf_config.integer(flat, "num_hidden_layers")
    if hf_config.integer(flat, "max_window_layers", default=layers, least=0) < layers:
        hf_config.expect(flat, "use_sliding_window", (False, None), default=False)
    hf_config.rope_scaling(flat, ())
    return {
        **common(flat, largest_chunk),
        "hidden_act": hf_config.expect(flat, "hidden_act", ("silu",), default="silu"),
        "rope_theta": hf_config.rope_theta(flat),
        "tie_word_embeddings": bool(flat.get("tie_word_embeddings", False)),
        "dtype": str(flat.get("dtype", "float32")),
    }


def qwen3_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``Qwen3Config`` from a flat config."""
    bias = bool(flat.get("attention_bias", False))
    block = flat.get("weight_block_size")
    return {**qwen_fields(flat, 2048), "attention_bias": bias, "weight_block_size": block}

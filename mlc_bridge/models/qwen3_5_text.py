"""Qwen 3.5, 3.6 and 3.8 (the text part): three of four layers are gated DeltaNets, the fourth is
attention with a gate on its output and a quarter of each head rotated; norms are stored minus one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Gated,
    GatedDelta,
    Layer,
    Norm,
    Pre,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.hf_config import FULL
from mlc_bridge.models.decoder.qwen import C_ATTN

LINEAR = "linear_attention"


@dataclass(frozen=True, kw_only=True)
class Qwen35Config(ClassicConfig):
    attention_bias: bool
    layer_types: list[str]
    full_attention_interval: int
    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


class Qwen35(DecoderFamily):
    name = "qwen3_5_text"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Qwen35Config:
        return Qwen35Config(**hybrid_fields(flat))

    def decoder(self, config: Qwen35Config) -> Decoder:
        norm = Norm(config.rms_norm_eps, offset=1.0)
        mlp = Gated(config.intermediate_size, config.activation)
        layers = (Layer(mixer(config, kind, norm), mlp, Pre(norm)) for kind in config.layer_types)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


def hybrid_fields(flat: Settings) -> dict[str, Any]:
    """The fields of ``Qwen35Config``."""
    every = hf_config.integer(flat, "full_attention_interval")
    layers = hf_config.integer(flat, "num_hidden_layers")
    kinds = flat.get("layer_types") or [LINEAR if (i + 1) % every else FULL for i in range(layers)]
    fields = {
        key: hf_config.integer(flat, key)
        for key in (
            "linear_key_head_dim", "linear_value_head_dim",
            "linear_num_key_heads", "linear_num_value_heads",
        )
    }  # fmt: skip
    return {
        **classic_fields(flat, partial=True),
        **fields,
        "linear_conv_kernel_dim": hf_config.integer(flat, "linear_conv_kernel_dim", least=2),
        "full_attention_interval": every,
        "layer_types": hf_config.kinds_of_layers(flat, kinds, (FULL, LINEAR)),
        "attention_bias": bool(flat["attention_bias"]),
    }


def mixer(
    config: Qwen35Config, kind: str, norm: Norm, *, grouped: bool = False
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


QWEN3_5_TEXT = Qwen35()

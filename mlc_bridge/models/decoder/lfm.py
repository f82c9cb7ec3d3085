"""What LFM2 and its mixture share: most layers are short convolutions, the others attention with
normed queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.attention import Attention
from mlc_bridge.models.decoder.classic import ClassicConfig, classic_fields
from mlc_bridge.models.decoder.hf_config import FULL
from mlc_bridge.models.decoder.layer import Layer, Pre
from mlc_bridge.models.decoder.mlp import Gated
from mlc_bridge.models.decoder.model import Names
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.part import Part
from mlc_bridge.models.decoder.settings import Settings
from mlc_bridge.models.decoder.short_conv import ShortConv

CONV = "conv"
NAMES = Names(norm=("model.embedding_norm",) * 2)
RENAMED = {
    "norm_eps": "rms_norm_eps",
    "tie_embedding": "tie_word_embeddings",
    "block_ff_dim": "intermediate_size",
}
# Of the classes in transformers.
LFM_DEFAULTS = {
    "vocab_size": 65536,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
}


@dataclass(frozen=True, kw_only=True)
class LfmConfig(ClassicConfig):
    layer_types: list[str]
    conv_L_cache: int
    conv_bias: bool


def lfm_fields(flat: Settings) -> dict[str, Any]:
    layers = hf_config.integer(flat, "num_hidden_layers")
    full = flat.get("full_attn_idxs")
    every = range(layers) if full is None else full
    kinds = flat.get("layer_types") or [FULL if i in every else CONV for i in range(layers)]
    return {
        **classic_fields(flat, 1_000_000),
        "layer_types": hf_config.kinds_of_layers(flat, kinds, (FULL, CONV)),
        "conv_L_cache": hf_config.integer(flat, "conv_L_cache", least=2),
        "conv_bias": bool(flat["conv_bias"]),
    }


def dense(inner: int) -> Gated:
    gate_up = ("feed_forward.w1_w3", "feed_forward.w1", "feed_forward.w3")
    return Gated(inner, gate_up=gate_up, down=("feed_forward.w2",) * 2)


def layer(config: LfmConfig, kind: str, mlp: Part) -> Layer:
    norm = Norm(config.rms_norm_eps)
    mixer = ShortConv(config.hidden_size, config.conv_L_cache, config.conv_bias)
    join = Pre(norm, ("operator_norm",) * 2, ("ffn_norm",) * 2)
    return Layer(mixer if kind == CONV else _attention(config, norm), mlp, join)


def _attention(config: LfmConfig, norm: Norm) -> Attention:
    return Attention.of(
        config,
        config.rope(),
        norm=norm,
        norms=("self_attn.q_layernorm", "self_attn.k_layernorm"),
        o=("self_attn.out_proj",) * 2,
    )

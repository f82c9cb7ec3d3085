"""LFM2: most layers are short convolutions, the others attention with normed queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Names,
    Norm,
    Pre,
    Settings,
    ShortConv,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.attention import QKV
from mlc_bridge.models.decoder.hf_config import FULL

CONV = "conv"


@dataclass(frozen=True, kw_only=True)
class Lfm2Config(ClassicConfig):
    layer_types: list[str]
    conv_L_cache: int
    conv_bias: bool
    block_auto_adjust_ff_dim: bool
    block_ffn_dim_multiplier: float | None
    block_multiple_of: int

    @property
    def inner(self) -> int:
        """Width of the MLP: two thirds of the config's, scaled and rounded up."""
        if not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        width = int(2 * self.intermediate_size / 3)
        if self.block_ffn_dim_multiplier is None:
            return width
        step = self.block_multiple_of
        return -(-int(self.block_ffn_dim_multiplier * width) // step) * step


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}


class Lfm2(DecoderFamily):
    name = "lfm2"
    defaults = DEFAULTS
    renamed = {  # noqa: RUF012
        "norm_eps": "rms_norm_eps",
        "tie_embedding": "tie_word_embeddings",
        "block_ff_dim": "intermediate_size",
    }

    def read(self, flat: Settings) -> Lfm2Config:
        return Lfm2Config(
            **classic_fields(flat, 1_000_000),
            **convolution_fields(flat),
            block_auto_adjust_ff_dim=bool(flat["block_auto_adjust_ff_dim"]),
            block_ffn_dim_multiplier=flat["block_ffn_dim_multiplier"],
            block_multiple_of=hf_config.integer(flat, "block_multiple_of"),
        )

    def decoder(self, config: Lfm2Config) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        mlp = Gated(
            config.inner,
            gate_up=("feed_forward.w1_w3", "feed_forward.w1", "feed_forward.w3"),
            down=("feed_forward.w2",) * 2,
        )
        layers = (Layer(mixer(config, kind, norm), mlp, join(norm)) for kind in config.layer_types)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings, names=NAMES)


NAMES = Names(norm=("model.embedding_norm",) * 2)


def join(norm: Norm) -> Pre:
    return Pre(norm, ("operator_norm",) * 2, ("ffn_norm",) * 2)


def convolution_fields(flat: Settings) -> dict[str, Any]:
    layers = hf_config.integer(flat, "num_hidden_layers")
    full = flat.get("full_attn_idxs")
    every = range(layers) if full is None else full
    kinds = flat.get("layer_types") or [FULL if i in every else CONV for i in range(layers)]
    return {
        "layer_types": hf_config.kinds_of_layers(flat, kinds, (FULL, CONV)),
        "conv_L_cache": hf_config.integer(flat, "conv_L_cache", least=2),
        "conv_bias": bool(flat["conv_bias"]),
    }


def mixer(config: Any, kind: str, norm: Norm) -> Attention | ShortConv:
    if kind == CONV:
        return ShortConv(config.hidden_size, config.conv_L_cache, config.conv_bias)
    return Attention.of(
        config,
        config.rope(),
        norm=norm,
        norms=("self_attn.q_layernorm", "self_attn.k_layernorm"),
        qkv=QKV,
        o=("self_attn.out_proj",) * 2,
    )


LFM2 = Lfm2()

"""Gemma 3 text: gemma2 without caps, with norms on query and key heads, five of six layers local.

Local layers have their own rotary base (10,000 against 1,000,000, which may be scaled linearly).
MLC keeps one base for all layers and 1,024 as the window; here both follow the checkpoint. Query,
key and value stay separate parameters, under ``language_model.``, as MLC names them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Names,
    Norm,
    Rope,
    Sandwich,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.config import OURS, common
from mlc_bridge.models.decoder.hf_config import FULL, GELU_TANH
from mlc_bridge.models.decoder.scaling import Scaled, scaling_of

OUTSIDE = ("vocab_size", "tensor_parallel_shards", "max_batch_size")
BOTH = ("context_window_size", "prefill_chunk_size", "sliding_window_size")
NAMES = Names(
    embed=("language_model.model.embed_tokens", "model.embed_tokens"),
    layer=("language_model.model.layers.{}", "model.layers.{}"),
    norm=("language_model.model.norm", "model.norm"),
)


@dataclass(frozen=True, kw_only=True)
class Gemma3TextConfig(Scaled):
    """MLC nests the text model in its block; ``rope_local_base_freq`` is ours."""

    hidden_activation: str
    position_embedding_base: float
    rope_local_base_freq: float
    query_pre_attn_scalar: float
    sliding_window_size: int
    sliding_window_pattern: int
    attention_bias: bool = False

    def asdict(self) -> dict[str, Any]:
        block = super().asdict()
        text = {k: v for k, v in block.items() if k not in (*OUTSIDE, *OURS)}
        outer = {k: block[k] for k in (*OUTSIDE, *BOTH)}
        outer |= {k: v for k, v in block.items() if k in OURS}
        return {**outer, "text_config": text, "is_text_model": True}


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


class Gemma3Text(DecoderFamily):
    name = "gemma3_text"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Gemma3TextConfig:
        hf_config.expect(flat, "attention_bias", (False,), default=False)
        hf_config.expect(flat, "tie_word_embeddings", (True,))
        patterns = ("sliding_window_pattern", "_sliding_window_pattern")
        pattern = hf_config.integer(flat, *patterns, default=6)
        hf_config.local_layers(flat, pattern)
        return Gemma3TextConfig(
            **common(flat),
            hidden_activation=hf_config.expect(flat, "hidden_activation", (GELU_TANH,)),
            position_embedding_base=hf_config.rope_theta(flat, 1_000_000, FULL),
            rope_local_base_freq=hf_config.local_theta(flat),
            rope_scaling=scaling_of(flat, FULL),
            query_pre_attn_scalar=hf_config.number(flat, "query_pre_attn_scalar", 256),
            sliding_window_size=hf_config.window(flat, "sliding_window_size", "sliding_window"),
            sliding_window_pattern=pattern,
        )

    def decoder(self, config: Gemma3TextConfig) -> Decoder:
        norm, pattern = Norm(config.rms_norm_eps, offset=1.0), config.sliding_window_pattern
        full = Attention.of(
            config,
            config.scaled_rope(config.position_embedding_base),
            norm=norm,
            query_width=config.query_pre_attn_scalar,
        )
        rope = Rope(config.rope_local_base_freq, rotary_dim=config.head_dim)
        local = replace(full, rope=rope, window=config.sliding_window_size)
        mlp = Gated(config.intermediate_size, "gelu_tanh")
        layers = (
            Layer(local if (i + 1) % pattern else full, mlp, Sandwich(norm))
            for i in range(config.num_hidden_layers)
        )
        scale = config.hidden_size**0.5
        return Decoder.of(
            config, layers, norm, tied=True, embed_scale=scale, names=NAMES, apart=("qkv",)
        )


GEMMA3_TEXT = Gemma3Text()

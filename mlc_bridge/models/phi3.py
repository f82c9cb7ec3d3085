"""Phi 3, 3.5 and 4-mini: a llama whose checkpoint is fused already, under MLC's ``transformer.h``.

``longrope`` divides every rotary frequency by a factor of its own: the short list while a sequence
fits the length of training, the long list beyond. Both are in the lib (``rotary.py``); the first
prefill of a prompt decides, so that a chunk must be longer than the length of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Names,
    Norm,
    Pre,
    Rope,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.config import DecoderConfig, common
from mlc_bridge.models.decoder.longrope import check_chunk, longrope_block, longrope_lists

NAMES = Names(
    embed=("transformer.embd", "model.embed_tokens"),
    layer=("transformer.h.{}", "model.layers.{}"),
    norm=("transformer.norm", "model.norm"),
)


@dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    """MLC's ``model_config`` block of a phi3; ``sliding_window`` is ours, when there is one."""

    model_type: str
    max_position_embeddings: int
    position_embedding_base: float
    rope_scaling: dict[str, Any] | None
    original_max_position_embeddings: int
    tie_word_embeddings: bool
    partial_rotary_factor: float
    sliding_window: int | None

    unsaid = ("sliding_window",)

    @property
    def restart_beyond(self) -> int | None:
        trained = self.original_max_position_embeddings
        return trained if self.rope_scaling and self.context_window_size > trained else None


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}


class Phi3(DecoderFamily):
    name = "phi3"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Phi3Config:
        hf_config.expect(flat, "hidden_act", ("silu",), default="silu")
        largest = hf_config.integer(flat, "max_position_embeddings")
        trained = hf_config.integer(flat, "original_max_position_embeddings", default=4096)
        config = Phi3Config(
            **common(flat),
            model_type="phi3",
            max_position_embeddings=largest,
            position_embedding_base=hf_config.rope_theta(flat),
            rope_scaling=longrope_block(flat, largest, trained),
            original_max_position_embeddings=trained,
            tie_word_embeddings=bool(flat.get("tie_word_embeddings", False)),
            partial_rotary_factor=hf_config.number(
                flat.get("rope_parameters") or {},
                "partial_rotary_factor",
                flat.get("partial_rotary_factor", 1.0),
            ),
            sliding_window=flat.get("sliding_window"),
        )
        check_chunk(config.restart_beyond, config.prefill_chunk_size)
        return config

    def decoder(self, config: Phi3Config) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        rotary = int(config.head_dim * config.partial_rotary_factor)
        lists = longrope_lists(config.rope_scaling, rotary // 2) if config.rope_scaling else None
        attention = Attention.of(
            config,
            rope=Rope(config.position_embedding_base, rotary_dim=rotary, lists=lists),
            window=config.sliding_window,
            qkv=("mixer.qkv_proj", "self_attn.qkv_proj"),
            o=("mixer.out_proj", "self_attn.o_proj"),
        )
        mlp = Gated(config.intermediate_size, gate_up=("mlp.gate_up_proj", "mlp.gate_up_proj"))
        layer = Layer(attention, mlp, Pre(norm, before_mixer=("ln", "input_layernorm")))
        return Decoder.of(
            config,
            layers=(layer,) * config.num_hidden_layers,
            norm=norm,
            tied=config.tie_word_embeddings,
            names=NAMES,
        )


PHI3 = Phi3()

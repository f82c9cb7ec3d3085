"""Mixtral: a llama with experts instead of the MLP; a softmax over the chosen experts' scores.

MLC stores the experts of a layer as ``moe.e1_e3`` (gate and up stacked along the rows) and
``moe.e2`` (down).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Experts,
    Layer,
    Norm,
    Pre,
    Rope,
    Router,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.config import DecoderConfig, common


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(DecoderConfig):
    """MLC's ``model_config`` block of a mixtral."""

    tie_word_embeddings: bool
    position_embedding_base: float
    num_local_experts: int
    num_experts_per_tok: int
    rope_scaling: None = None
    pipeline_parallel_stages: int = 1
    disaggregation: bool = False


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}


class Mixtral(DecoderFamily):
    name = "mixtral"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> MixtralConfig:
        hf_config.expect(flat, "hidden_act", ("silu",), default="silu")
        hf_config.expect(flat, "sliding_window", (None,))
        hf_config.rope_scaling(flat, ())
        return MixtralConfig(
            **common(flat),
            tie_word_embeddings=bool(flat.get("tie_word_embeddings", False)),
            position_embedding_base=hf_config.rope_theta(flat, 1_000_000),
            num_local_experts=hf_config.integer(flat, "num_experts", "num_local_experts"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok"),
        )

    def decoder(self, config: MixtralConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        attention = Attention.of(config, rope=Rope(config.position_embedding_base))
        experts = Experts(
            count=config.num_local_experts,
            inner=config.intermediate_size,
            router=Router(
                config.num_experts_per_tok,
                renormalize=True,
                gate=("moe.gate", "block_sparse_moe.gate"),
            ),
            gate_up=(
                "moe.e1_e3",
                "block_sparse_moe.experts.{}.w1",
                "block_sparse_moe.experts.{}.w3",
            ),
            down=("moe.e2", "block_sparse_moe.experts.{}.w2"),
        )
        layer = Layer(attention, experts, Pre(norm))
        return Decoder.of(
            config,
            layers=(layer,) * config.num_hidden_layers,
            norm=norm,
            tied=config.tie_word_embeddings,
        )


MIXTRAL = Mixtral()

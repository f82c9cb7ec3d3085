"""Llama 1, 2, 3, 3.1, 3.2: rotary GQA decoder, RMS norms before each block, SiLU-gated MLP.

The rotary embedding may be scaled (``llama3`` from Llama 3.1 on); the head may be tied to the
embedding. Query, key and value are fused to ``qkv_proj``, gate and up to ``gate_up_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Pre,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.config import common
from mlc_bridge.models.decoder.scaling import Scaled, scaling_of


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Scaled):
    """MLC's ``model_config`` block of a llama."""

    tie_word_embeddings: bool
    position_embedding_base: float
    pipeline_parallel_stages: int = 1
    disaggregation: bool = False


def llama_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``LlamaConfig`` from a flat config."""
    for switch in ("attention_bias", "mlp_bias"):
        hf_config.expect(flat, switch, (False, None))
    hf_config.expect(flat, "hidden_act", ("silu",), default="silu")
    hf_config.local_layers(flat, 1)
    return {
        **common(flat),
        "tie_word_embeddings": bool(flat.get("tie_word_embeddings", False)),
        "position_embedding_base": hf_config.rope_theta(flat),
        "rope_scaling": scaling_of(flat),
        "disaggregation": bool(flat.get("disaggregation", False)),
    }


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
}


class Llama(DecoderFamily):
    name = "llama"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> LlamaConfig:
        return LlamaConfig(**llama_fields(flat))

    def decoder(self, config: LlamaConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        attention = Attention.of(config, config.scaled_rope(config.position_embedding_base))
        layer = Layer(attention, Gated(config.intermediate_size), Pre(norm))
        return Decoder.of(
            config,
            layers=(layer,) * config.num_hidden_layers,
            norm=norm,
            tied=config.tie_word_embeddings,
        )


LLAMA = Llama()

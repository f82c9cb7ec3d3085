"""Qwen 3.5 and 3.6, the text part of the mixtures; see ``decoder/qwen_hybrid.py``."""

from __future__ import annotations

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Layer, Norm, Pre, Settings
from mlc_bridge.models.decoder.qwen_hybrid import (
    HYBRID_DEFAULTS,
    QwenHybridMoeConfig,
    hybrid_fields,
    mixer,
    mixture,
    mixture_fields,
)

DEFAULTS = {
    **HYBRID_DEFAULTS,
    "vocab_size": 248320,
    "hidden_size": 2048,
    "intermediate_size": 512,  # of no layer; configs have none
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "num_experts": 256,
}


class Qwen35Moe(DecoderFamily):
    name = "qwen3_5_moe_text"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> QwenHybridMoeConfig:
        return QwenHybridMoeConfig(**hybrid_fields(flat), **mixture_fields(flat))

    def decoder(self, config: QwenHybridMoeConfig) -> Decoder:
        norm, mlp = Norm(config.rms_norm_eps, offset=1.0), mixture(config)
        layers = (Layer(mixer(config, kind, norm), mlp, Pre(norm)) for kind in config.layer_types)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


QWEN3_5_MOE_TEXT = Qwen35Moe()

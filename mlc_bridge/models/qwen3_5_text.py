"""Qwen 3.5, 3.6 and 3.8, the text part of the dense ones; see ``decoder/qwen_hybrid.py``."""

from __future__ import annotations

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Gated, Layer, Norm, Pre, Settings
from mlc_bridge.models.decoder.qwen_hybrid import (
    HYBRID_DEFAULTS,
    QwenHybridConfig,
    hybrid_fields,
    mixer,
)

DEFAULTS = {
    **HYBRID_DEFAULTS,
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}


class Qwen35(DecoderFamily):
    name = "qwen3_5_text"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> QwenHybridConfig:
        return QwenHybridConfig(**hybrid_fields(flat))

    def decoder(self, config: QwenHybridConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps, offset=1.0)
        mlp = Gated(config.intermediate_size, config.activation)
        layers = (Layer(mixer(config, kind, norm), mlp, Pre(norm)) for kind in config.layer_types)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


QWEN3_5_TEXT = Qwen35()

"""Qwen 3: a llama with an RMS norm on every query and key head; q, k, v fused to ``c_attn``."""

from __future__ import annotations

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Gated, Layer, Norm, Pre, Settings
from mlc_bridge.models.decoder.qwen import QWEN_DEFAULTS, Qwen3Config, qwen3_attention, qwen3_fields

DEFAULTS = {**QWEN_DEFAULTS, "head_dim": 128}


class Qwen3(DecoderFamily):
    name = "qwen3"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Qwen3Config:
        return Qwen3Config(**qwen3_fields(flat))

    def decoder(self, config: Qwen3Config) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        layer = Layer(qwen3_attention(config, norm), Gated(config.intermediate_size), Pre(norm))
        return Decoder.of(
            config,
            layers=(layer,) * config.num_hidden_layers,
            norm=norm,
            tied=config.tie_word_embeddings,
        )


QWEN3 = Qwen3()

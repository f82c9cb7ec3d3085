"""Qwen 2 and 2.5: a llama with biases on query, key and value, fused to ``c_attn``."""

from __future__ import annotations

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Pre,
    Settings,
)
from mlc_bridge.models.decoder.qwen import C_ATTN, QWEN_DEFAULTS, QwenConfig, qwen_fields


class Qwen2(DecoderFamily):
    name = "qwen2"
    defaults = QWEN_DEFAULTS

    def read(self, flat: Settings) -> QwenConfig:
        return QwenConfig(**qwen_fields(flat, 8192))

    def decoder(self, config: QwenConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        attention = Attention.of(config, rope=config.rope, bias=True, qkv=C_ATTN)
        layer = Layer(attention, Gated(config.intermediate_size), Pre(norm))
        return Decoder.of(
            config,
            layers=(layer,) * config.num_hidden_layers,
            norm=norm,
            tied=config.tie_word_embeddings,
        )


QWEN2 = Qwen2()

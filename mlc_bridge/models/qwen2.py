"""Qwen 2 and 2.5: a llama with biases on query, key and value, fused to ``c_attn``."""

from __future__ import annotations

from mlc_bridge.models.decoder_spec import DecoderFamily, DecoderSpec, Rope, sizes
from mlc_bridge.models.qwen_config import QWEN_DEFAULTS, QWEN_NAMES, QwenConfig, qwen_fields
from mlc_bridge.models.settings import Settings


class Qwen2(DecoderFamily):
    name = "qwen2"
    defaults = QWEN_DEFAULTS

    def read(self, flat: Settings) -> QwenConfig:
        return QwenConfig(**qwen_fields(flat, 8192))

    def spec(self, config: QwenConfig) -> DecoderSpec:
        return DecoderSpec(
            **sizes(config),
            rope=Rope(config.rope_theta),
            names=QWEN_NAMES,
            tied=config.tie_word_embeddings,
            qkv_bias=True,
        )


QWEN2 = Qwen2()

"""Qwen 2 and 2.5: a llama with biases on query, key and value, fused to ``c_attn``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlc_bridge.models import hf_config
from mlc_bridge.models.decoder_spec import DecoderFamily, DecoderSpec, Rope, sizes
from mlc_bridge.models.qwen_config import QWEN_NAMES, QwenConfig, qwen_fields


class Qwen2(DecoderFamily):
    name = "qwen2"

    def config(self, hf: Mapping[str, Any], **overrides: Any) -> QwenConfig:
        return QwenConfig(**qwen_fields(hf_config.flatten(hf, overrides), 8192))

    def spec(self, config: QwenConfig) -> DecoderSpec:
        return DecoderSpec(
            **sizes(config),
            rope=Rope(config.rope_theta),
            names=QWEN_NAMES,
            tied=config.tie_word_embeddings,
            qkv_bias=True,
        )


QWEN2 = Qwen2()

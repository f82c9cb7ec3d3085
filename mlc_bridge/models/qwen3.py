"""Qwen 3: a llama with an RMS norm on every query and key head; q, k, v fused to ``c_attn``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlc_bridge.models import hf_config
from mlc_bridge.models.decoder_spec import DecoderFamily, DecoderSpec, Rope, sizes
from mlc_bridge.models.qwen_config import QWEN_NAMES, Qwen3Config, qwen3_fields


class Qwen3(DecoderFamily):
    name = "qwen3"

    def config(self, hf: Mapping[str, Any], **overrides: Any) -> Qwen3Config:
        return Qwen3Config(**qwen3_fields(hf_config.flatten(hf, overrides)))

    def spec(self, config: Qwen3Config) -> DecoderSpec:
        return DecoderSpec(
            **sizes(config),
            rope=Rope(config.rope_theta),
            names=QWEN_NAMES,
            tied=config.tie_word_embeddings,
            qkv_bias=config.attention_bias,
            o_bias=config.attention_bias,
            qk_norm=True,
        )


QWEN3 = Qwen3()

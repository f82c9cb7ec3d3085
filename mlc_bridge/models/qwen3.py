"""Qwen 3: a llama with an RMS norm on every query and key head; q, k, v fused to ``c_attn``."""

from __future__ import annotations

from mlc_bridge.models.decoder_spec import DecoderFamily, DecoderSpec, Rope, sizes
from mlc_bridge.models.qwen_config import QWEN_DEFAULTS, QWEN_NAMES, Qwen3Config, qwen3_fields
from mlc_bridge.models.settings import Settings

DEFAULTS = {**QWEN_DEFAULTS, "head_dim": 128}


class Qwen3(DecoderFamily):
    name = "qwen3"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Qwen3Config:
        return Qwen3Config(**qwen3_fields(flat))

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

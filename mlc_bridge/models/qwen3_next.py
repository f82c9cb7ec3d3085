"""Qwen 3 Next: the rows of a key head stand together in the projections of its DeltaNets; some
layers may have a plain MLP. See ``decoder/qwen_hybrid.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Pre,
    Settings,
    hf_config,
)
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
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
    "norm_topk_prob": True,
}


@dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(QwenHybridMoeConfig):
    norm_topk_prob: bool
    decoder_sparse_step: int
    mlp_only_layers: list[int]


class Qwen3Next(DecoderFamily):
    name = "qwen3_next"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Qwen3NextConfig:
        return Qwen3NextConfig(
            **hybrid_fields(flat),
            **mixture_fields(flat),
            norm_topk_prob=bool(flat["norm_topk_prob"]),
            decoder_sparse_step=hf_config.integer(flat, "decoder_sparse_step"),
            mlp_only_layers=list(flat.get("mlp_only_layers") or []),
        )

    def decoder(self, config: Qwen3NextConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps, offset=1.0)
        dense = Gated(config.intermediate_size, config.activation)
        experts = mixture(config, renormalize=config.norm_topk_prob)

        def layer(index: int, kind: str) -> Layer:
            sparse = (index + 1) % config.decoder_sparse_step == 0
            mlp = experts if sparse and index not in config.mlp_only_layers else dense
            return Layer(mixer(config, kind, norm, grouped=True), mlp, Pre(norm))

        layers = (layer(index, kind) for index, kind in enumerate(config.layer_types))
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


QWEN3_NEXT = Qwen3Next()

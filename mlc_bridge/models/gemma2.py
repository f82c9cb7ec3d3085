"""Gemma 2: norms before and after each block, capped scores and logits, every other layer local.

MLC limits the context to one window and leaves the score cap out; here both are exact, so the
context limit stays the checkpoint's. Norm weights are stored with the one that Gemma adds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlc_bridge.models.decoder import (
    Attention,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Rope,
    Sandwich,
    Settings,
    hf_config,
)
from mlc_bridge.models.decoder.config import DecoderConfig, common
from mlc_bridge.models.decoder.hf_config import GELU_TANH


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(DecoderConfig):
    """MLC's ``model_config`` block of a gemma2."""

    attention_bias: bool
    hidden_activation: str
    position_embedding_base: float
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None
    query_pre_attn_scalar: float
    sliding_window: int


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


class Gemma2(DecoderFamily):
    name = "gemma2"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Gemma2Config:
        hf_config.expect(flat, "tie_word_embeddings", (True,), default=True)
        hf_config.rope_scaling(flat, ())
        hf_config.local_layers(flat, 2)
        return Gemma2Config(
            **common(flat),
            attention_bias=hf_config.expect(flat, "attention_bias", (False,), default=False),
            hidden_activation=hf_config.expect(
                flat, "hidden_activation", (GELU_TANH,), default=GELU_TANH
            ),
            position_embedding_base=hf_config.rope_theta(flat),
            attn_logit_softcapping=flat.get("attn_logit_softcapping"),
            final_logit_softcapping=flat.get("final_logit_softcapping"),
            query_pre_attn_scalar=hf_config.number(flat, "query_pre_attn_scalar"),
            sliding_window=hf_config.integer(flat, "sliding_window"),
        )

    def decoder(self, config: Gemma2Config) -> Decoder:
        norm = Norm(config.rms_norm_eps, offset=1.0)
        full = Attention.of(
            config,
            rope=Rope(config.position_embedding_base),
            query_width=config.query_pre_attn_scalar,
            score_cap=config.attn_logit_softcapping,
        )
        kinds = replace(full, window=config.sliding_window), full
        mlp = Gated(config.intermediate_size, "gelu_tanh")
        return Decoder.of(
            config,
            layers=tuple(
                Layer(kinds[i % 2], mlp, Sandwich(norm)) for i in range(config.num_hidden_layers)
            ),
            norm=norm,
            tied=True,
            embed_scale=config.hidden_size**0.5,
            logit_cap=config.final_logit_softcapping,
        )


GEMMA2 = Gemma2()

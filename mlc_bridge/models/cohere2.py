"""Command R7B and A: one LayerNorm (no bias) before attention and MLP, which run side by side;
three of four layers are local, and only these rotate, neighbours as pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    LayerNorm,
    Parallel,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.hf_config import LOCAL


@dataclass(frozen=True, kw_only=True)
class Cohere2Config(ClassicConfig):
    attention_bias: bool
    logit_scale: float
    sliding_window: int
    layer_types: list[str]


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "logit_scale": 0.0625,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


class Cohere2(DecoderFamily):
    name = "cohere2"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Cohere2Config:
        every = hf_config.integer(flat, "sliding_window_pattern")
        return Cohere2Config(
            **classic_fields(flat),
            attention_bias=bool(flat["attention_bias"]),
            logit_scale=hf_config.number(flat, "logit_scale"),
            sliding_window=hf_config.integer(flat, "sliding_window"),
            layer_types=hf_config.layer_types(flat, every),
        )

    def decoder(self, config: Cohere2Config) -> Decoder:
        norm, bias = LayerNorm(config.rms_norm_eps), config.attention_bias
        full = Attention.of(config, None, bias=bias, o_bias=bias)
        rope = config.rope(interleaved=True)
        local = replace(full, rope=rope, window=config.sliding_window)
        mlp = Gated(config.intermediate_size, config.activation)
        layers = (
            Layer(local if kind == LOCAL else full, mlp, Parallel(norm))
            for kind in config.layer_types
        )
        return Decoder.of(
            config,
            layers,
            norm,
            tied=config.tie_word_embeddings,
            logit_scale=config.logit_scale,
        )


COHERE2 = Cohere2()

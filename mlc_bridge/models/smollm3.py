"""SmolLM 3: a llama whose every fourth layer has no rotary embedding (``no_rope_layers``: 0)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    Norm,
    Pre,
    Settings,
    classic_fields,
    hf_config,
)


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(ClassicConfig):
    attention_bias: bool
    mlp_bias: bool
    no_rope_layers: list[int]
    """1 where a layer rotates, 0 where it does not."""


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
}


class SmolLM3(DecoderFamily):
    name = "smollm3"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> SmolLM3Config:
        if flat.get("sliding_window"):
            hf_config.expect(flat, "use_sliding_window", (False, None))
        hf_config.local_layers(flat, 1)
        every, layers = flat["no_rope_layer_interval"], hf_config.integer(flat, "num_hidden_layers")
        rotating = flat["no_rope_layers"] or [int((i + 1) % every != 0) for i in range(layers)]
        return SmolLM3Config(
            **classic_fields(flat, 2_000_000),
            attention_bias=bool(flat["attention_bias"]),
            mlp_bias=bool(flat["mlp_bias"]),
            no_rope_layers=rotating,
        )

    def decoder(self, config: SmolLM3Config) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.attention_bias
        attention = Attention.of(config, config.rope(), bias=bias, o_bias=bias)
        mlp = Gated(config.intermediate_size, config.activation, bias=config.mlp_bias)
        kinds = replace(attention, rope=None), attention
        layers = (Layer(kinds[rotates], mlp, Pre(norm)) for rotates in config.no_rope_layers)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


SMOLLM3 = SmolLM3()

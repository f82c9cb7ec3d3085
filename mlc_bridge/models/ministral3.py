"""Ministral 3: a mistral with yarn, whose queries grow with the logarithm of their position."""

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
)


@dataclass(frozen=True, kw_only=True)
class Ministral3Config(ClassicConfig):
    sliding_window: int | None


# Of the class in transformers.
YARN = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
DEFAULTS = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
}


class Ministral3(DecoderFamily):
    name = "ministral3"
    defaults = DEFAULTS
    rope_keys = ("llama_4_scaling_beta",)

    def read(self, flat: Settings) -> Ministral3Config:
        fields = classic_fields(flat)
        if all(flat.get(key) is None for key in ROPE):
            fields |= {"rope_theta": 1_000_000, "rope_scaling": YARN}
        return Ministral3Config(**fields, sliding_window=flat["sliding_window"])

    def decoder(self, config: Ministral3Config) -> Decoder:
        norm, rope = Norm(config.rms_norm_eps), config.rope()
        scaling = config.rope_scaling or {}
        if beta := scaling.get("llama_4_scaling_beta"):
            rope = replace(rope, growth=(beta, scaling["original_max_position_embeddings"]))
        attention = Attention.of(config, rope, window=config.sliding_window)
        mlp = Gated(config.intermediate_size, config.activation)
        layers = (Layer(attention, mlp, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


MINISTRAL3 = Ministral3()

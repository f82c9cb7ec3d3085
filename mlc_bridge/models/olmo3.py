"""OLMo 3: olmo2 with three of four layers local; only the global ones may stretch their angles."""

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
    Post,
    Rope,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.hf_config import FULL, LOCAL


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(ClassicConfig):
    """``rope_theta`` and ``rope_scaling`` are those of global layers."""

    attention_bias: bool
    sliding_window: int | None
    layer_types: list[str]
    rope_local_base_freq: float


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "sliding_window": 4096,
}


class Olmo3(DecoderFamily):
    name = "olmo3"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Olmo3Config:
        kinds = {"rope_parameters": flat.get("rope_parameters")}
        hf_config.rope_scaling(kinds, (), LOCAL)
        fields = classic_fields(flat, 500_000, layers=FULL)
        return Olmo3Config(
            **fields,
            attention_bias=bool(flat["attention_bias"]),
            sliding_window=flat["sliding_window"],
            layer_types=hf_config.layer_types(flat, 4),
            rope_local_base_freq=hf_config.local_theta(flat, fields["rope_theta"]),
        )

    def decoder(self, config: Olmo3Config) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.attention_bias
        full = Attention.of(config, config.rope(), bias=bias, o_bias=bias, norm=norm, together=True)
        rope = Rope(config.rope_local_base_freq, rotary_dim=config.head_dim)
        local = replace(full, rope=rope, window=config.sliding_window)
        mlp = Gated(config.intermediate_size, config.activation)
        layers = (
            Layer(local if kind == LOCAL else full, mlp, Post(norm)) for kind in config.layer_types
        )
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


OLMO3 = Olmo3()

"""EXAONE 4: norms after the blocks and on every head; with a window, three of four layers are local
and only these rotate.
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
    Norm,
    Post,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.hf_config import LOCAL


@dataclass(frozen=True, kw_only=True)
class Exaone4Config(ClassicConfig):
    sliding_window: int | None
    layer_types: list[str]


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


class Exaone4(DecoderFamily):
    name = "exaone4"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Exaone4Config:
        window, every = flat["sliding_window"], flat["sliding_window_pattern"]
        return Exaone4Config(
            **classic_fields(flat),
            sliding_window=window,
            layer_types=hf_config.layer_types(flat, every if window else 1),
        )

    def decoder(self, config: Exaone4Config) -> Decoder:
        norm, window = Norm(config.rms_norm_eps), config.sliding_window
        local = Attention.of(config, config.rope(), norm=norm, window=window)
        full = replace(local, window=None, rope=None if window else local.rope)
        mlp = Gated(config.intermediate_size, config.activation)
        layers = (
            Layer(local if kind == LOCAL else full, mlp, Post(norm)) for kind in config.layer_types
        )
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


EXAONE4 = Exaone4()

"""StableLM: LayerNorm with bias, a quarter of each head rotated, attention and MLP perhaps side by
side.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Gated,
    Layer,
    LayerNorm,
    Parallel,
    Pre,
    Settings,
    classic_fields,
)


@dataclass(frozen=True, kw_only=True)
class StableLMConfig(ClassicConfig):
    use_qkv_bias: bool
    use_parallel_residual: bool


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_qkv_bias": False,
    "use_parallel_residual": False,
    "partial_rotary_factor": 0.25,
}


class StableLM(DecoderFamily):
    name = "stablelm"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> StableLMConfig:
        return StableLMConfig(
            **classic_fields(flat, partial=True),
            use_qkv_bias=bool(flat["use_qkv_bias"]),
            use_parallel_residual=bool(flat["use_parallel_residual"]),
        )

    def decoder(self, config: StableLMConfig) -> Decoder:
        norm = LayerNorm(config.rms_norm_eps, bias=True)
        attention = Attention.of(config, config.rope(), bias=config.use_qkv_bias)
        mlp = Gated(config.intermediate_size, config.activation)
        join = Parallel(norm) if config.use_parallel_residual else Pre(norm)
        layers = (Layer(attention, mlp, join),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


STABLELM = StableLM()

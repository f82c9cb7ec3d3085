"""StarCoder 2: LayerNorm, a plain MLP, biases everywhere, a window on every layer."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Layer,
    LayerNorm,
    Plain,
    Pre,
    Settings,
    classic_fields,
)
from mlc_bridge.models.decoder.attention import QKV


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(ClassicConfig):
    use_bias: bool
    sliding_window: int | None


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "sliding_window": None,
    "tie_word_embeddings": True,
}


class Starcoder2(DecoderFamily):
    name = "starcoder2"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Starcoder2Config:
        return Starcoder2Config(
            **classic_fields(flat),
            use_bias=bool(flat["use_bias"]),
            sliding_window=flat["sliding_window"],
        )

    def decoder(self, config: Starcoder2Config) -> Decoder:
        norm, bias = LayerNorm(config.rms_norm_eps, bias=True), config.use_bias
        attention = Attention.of(
            config,
            config.rope(),
            bias=bias,
            o_bias=bias,
            window=config.sliding_window,
            qkv=("self_attn.wqkv_pack", *QKV[1:]),
        )
        mlp = Plain(
            config.intermediate_size,
            config.activation,
            bias=bias,
            up=("mlp.c_fc",) * 2,
            down=("mlp.c_proj",) * 2,
        )
        layers = (Layer(attention, mlp, Pre(norm)),) * config.num_hidden_layers
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


STARCODER2 = Starcoder2()

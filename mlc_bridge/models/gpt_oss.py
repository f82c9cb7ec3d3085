"""gpt-oss: experts with biases and a clamped gate, attention sinks, every other layer local.

    inner = gate sigmoid(alpha gate) (up + 1),    gate <= limit,  |up| <= limit

All layers rotate alike, by yarn. The checkpoint's
joined experts come apart under the names that other mixtures have (``stages/joined_experts.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Experts,
    Layer,
    Norm,
    Pre,
    Router,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.experts import Clamp
from mlc_bridge.models.decoder.hf_config import FULL, LOCAL


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(ClassicConfig):
    attention_bias: bool
    sliding_window: int | None
    layer_types: list[str]
    num_local_experts: int
    num_experts_per_tok: int
    swiglu_alpha: float
    swiglu_limit: float


# Of the class in transformers, where a config has no word on rotation.
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
DEFAULTS = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}


class GptOss(DecoderFamily):
    name = "gpt_oss"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> GptOssConfig:
        layers = hf_config.integer(flat, "num_hidden_layers")
        usual = [FULL if i % 2 else LOCAL for i in range(layers)]
        kinds = flat.get("layer_types") or usual
        fields = classic_fields(flat, 150_000)
        if not flat.get("rope_parameters") and "rope_scaling" not in flat:
            fields["rope_scaling"] = YARN
        return GptOssConfig(
            **fields,
            attention_bias=bool(flat["attention_bias"]),
            sliding_window=flat["sliding_window"],
            layer_types=hf_config.kinds_of_layers(flat, kinds, (FULL, LOCAL)),
            num_local_experts=hf_config.integer(flat, "num_local_experts", "num_experts"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok", "experts_per_token"),
            swiglu_alpha=hf_config.number(flat, "swiglu_alpha"),
            swiglu_limit=hf_config.number(flat, "swiglu_limit"),
        )

    def decoder(self, config: GptOssConfig) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.attention_bias
        full = Attention.of(config, config.rope(), bias=bias, o_bias=bias, sinks=True)
        mixers = {FULL: full, LOCAL: replace(full, window=config.sliding_window)}
        router = Router(
            config.num_experts_per_tok,
            renormalize=True,
            gate=("mlp.router", "mlp.router"),
            bias=True,
        )
        experts = Experts(
            router,
            config.num_local_experts,
            config.intermediate_size,
            activation=Clamp(config.swiglu_alpha, config.swiglu_limit),
            bias=True,
        )
        layers = (Layer(mixers[kind], experts, Pre(norm)) for kind in config.layer_types)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


GPT_OSS = GptOss()

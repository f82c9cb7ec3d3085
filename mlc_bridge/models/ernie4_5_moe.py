"""ERNIE 4.5 with experts: a softmax that a correction balances, shared experts, dense layers first.

Otherwise ``ernie4_5.py``. The first layers are dense, and those between (``moe_layer_interval``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
    ClassicConfig,
    Decoder,
    DecoderFamily,
    Experts,
    Gated,
    Layer,
    Norm,
    Pre,
    Router,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.experts import shared_mlp


@dataclass(frozen=True, kw_only=True)
class Ernie45MoeConfig(ClassicConfig):
    use_bias: bool
    moe_intermediate_size: int
    moe_num_experts: int
    moe_num_shared_experts: int
    moe_k: int
    moe_layer_start_index: int
    moe_layer_end_index: int
    moe_layer_interval: int
    moe_norm_min: float

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        between = self.moe_layer_start_index <= layer <= self.moe_layer_end_index
        return between and (layer + 1) % self.moe_layer_interval == 0


SHARED = "mlp.shared_experts"
# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "use_bias": False,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
}


class Ernie45Moe(DecoderFamily):
    name = "ernie4_5_moe"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> Ernie45MoeConfig:
        last = hf_config.integer(flat, "moe_layer_end_index", least=-1)
        layers = hf_config.integer(flat, "num_hidden_layers")
        return Ernie45MoeConfig(
            **classic_fields(flat, 500_000),
            use_bias=bool(flat["use_bias"]),
            moe_intermediate_size=hf_config.integer(flat, "moe_intermediate_size"),
            moe_num_experts=hf_config.integer(flat, "moe_num_experts", "num_experts"),
            moe_num_shared_experts=hf_config.integer(flat, "moe_num_shared_experts", least=0),
            moe_k=hf_config.integer(flat, "moe_k", "num_experts_per_tok"),
            moe_layer_start_index=hf_config.integer(flat, "moe_layer_start_index", least=0),
            moe_layer_end_index=layers - 1 if last == -1 else last,
            moe_layer_interval=hf_config.integer(flat, "moe_layer_interval"),
            moe_norm_min=hf_config.number(flat, "moe_norm_min"),
        )

    def decoder(self, config: Ernie45MoeConfig) -> Decoder:
        norm, bias, act = Norm(config.rms_norm_eps), config.use_bias, config.activation
        rope = config.rope(interleaved=True)
        attention = Attention.of(config, rope, bias=bias, o_bias=bias)
        dense = Gated(config.intermediate_size, act, bias=bias)
        mlps = dense, self._experts(config)
        sparse = map(config.sparse, range(config.num_hidden_layers))
        layers = (Layer(attention, mlps[kind], Pre(norm)) for kind in sparse)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)

    def _experts(self, config: Ernie45MoeConfig) -> Experts:
        inner, act = config.moe_intermediate_size, config.activation
        shared = inner * config.moe_num_shared_experts
        bias = "e_score_correction_bias"
        return Experts(
            Router(
                config.moe_k,
                renormalize=True,
                floor=config.moe_norm_min,
                correction=(f"mlp.gate.{bias}", f"mlp.moe_statics.{bias}"),
            ),
            config.moe_num_experts,
            inner,
            activation=act,
            shared=shared_mlp(shared, SHARED, act, bias=config.use_bias) if shared else None,
        )


ERNIE4_5_MOE = Ernie45Moe()

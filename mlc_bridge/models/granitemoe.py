"""Granite 3 with experts: granite's four multipliers, a softmax over the chosen experts' scores.

The checkpoint joins all experts of a layer (``input_linear``, ``output_linear``); they come apart
in ``stages/joined_experts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import (
    Attention,
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
from mlc_bridge.models.decoder.multipliers import Multiplied, multipliers

MOE = "block_sparse_moe"
GATE = (f"{MOE}.router", f"{MOE}.router.layer")
EXPERT = f"{MOE}.experts.{{}}"


@dataclass(frozen=True, kw_only=True)
class GraniteMoeConfig(Multiplied):
    attention_bias: bool
    num_local_experts: int
    num_experts_per_tok: int


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


class GraniteMoe(DecoderFamily):
    name = "granitemoe"
    defaults = DEFAULTS

    def read(self, flat: Settings) -> GraniteMoeConfig:
        return GraniteMoeConfig(
            **classic_fields(flat),
            **multipliers(flat),
            attention_bias=bool(flat["attention_bias"]),
            num_local_experts=hf_config.integer(flat, "num_local_experts", "num_experts"),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok"),
        )

    def decoder(self, config: GraniteMoeConfig) -> Decoder:
        norm, bias = Norm(config.rms_norm_eps), config.attention_bias
        attention = Attention.of(
            config, config.rope(), bias=bias, o_bias=bias, multiplier=config.attention_multiplier
        )
        router = Router(config.num_experts_per_tok, renormalize=True, gate=GATE)
        experts = Experts(
            router,
            config.num_local_experts,
            config.intermediate_size,
            gate_up=(f"{MOE}.gate_up_proj", f"{EXPERT}.gate_proj", f"{EXPERT}.up_proj"),
            down=(f"{MOE}.down_proj", f"{EXPERT}.down_proj"),
            activation=config.activation,
        )
        layer = Layer(attention, experts, Pre(norm, scale=config.residual_multiplier))
        return Decoder.of(config, (layer,) * config.num_hidden_layers, norm, **config.outer())


GRANITEMOE = GraniteMoe()

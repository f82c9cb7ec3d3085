"""Hunyuan with experts: hunyuan_v1_dense, whose every layer has experts beside its MLP.

Configs may give a value for every layer: how many experts a token has may differ (``moe_topk``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.models.decoder import (
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
from mlc_bridge.models.decoder.experts import shared_mlp
from mlc_bridge.models.decoder.hunyuan import HunyuanConfig, hunyuan_attention


@dataclass(frozen=True, kw_only=True)
class HunyuanMoeConfig(HunyuanConfig):
    num_experts: int
    moe_topk: list[int]
    """Of every layer."""


# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 290943,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "num_experts": 1,
    "moe_topk": 1,
}


class HunyuanV1Moe(DecoderFamily):
    name = "hunyuan_v1_moe"
    defaults = DEFAULTS
    rope_keys = ("alpha",)

    def read(self, flat: Settings) -> HunyuanMoeConfig:
        hf_config.expect(flat, "use_cla", (False, None))
        hf_config.expect(flat, "use_qk_norm", (True, None))
        hf_config.expect(flat, "moe_layer_num_skipped", (0, None))
        hf_config.expect(flat, "use_mixed_mlp_moe", (True, None))
        counts = set(_each_layer(flat, "num_experts"))
        inner = {*_each_layer(flat, "moe_intermediate_size"), flat["intermediate_size"]}
        shared = set(_each_layer(flat, "num_shared_expert")) - {None}
        if len(counts) > 1 or len(inner - {None}) > 1 or not shared <= {1}:
            raise ConfigError("hunyuan_v1_moe: experts that differ by layer", found=counts | inner)
        return HunyuanMoeConfig(
            **classic_fields(flat),
            attention_bias=bool(flat["attention_bias"]),
            num_experts=hf_config.integer({"num_experts": counts.pop()}, "num_experts"),
            moe_topk=list(_each_layer(flat, "moe_topk")),
        )

    def decoder(self, config: HunyuanMoeConfig) -> Decoder:
        norm, act = Norm(config.rms_norm_eps), config.activation
        attention, inner = hunyuan_attention(config, norm), config.intermediate_size

        def experts(chosen: int) -> Experts:
            router = Router(chosen, renormalize=True, gate=("mlp.gate", "mlp.gate.wg"))
            shared = shared_mlp(inner, "mlp.shared_mlp", act)
            return Experts(router, config.num_experts, inner, activation=act, shared=shared)

        layers = (Layer(attention, experts(chosen), Pre(norm)) for chosen in config.moe_topk)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings)


def _each_layer(flat: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """A value for every layer, of a key that may have one for all."""
    value, layers = flat.get(key), hf_config.integer(flat, "num_hidden_layers")
    found = tuple(value) if isinstance(value, list | tuple) else (value,) * layers
    if len(found) != layers:
        raise ConfigError(f"{key}: one value for every layer", found=found, expected=layers)
    return found


HUNYUAN_V1_MOE = HunyuanV1Moe()

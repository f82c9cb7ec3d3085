"""Phi 3, 3.5 and 4-mini: a llama whose checkpoint is fused already, under MLC's ``transformer.h``.

``longrope`` divides every rotary frequency by a factor of its own: the short list up to the length
of training, the long list beyond. A sequence cannot change its list while it grows, so the context
limit of the build decides, and both queries and keys are scaled as the list demands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlc_bridge.models import hf_config
from mlc_bridge.models.decoder_config import DecoderConfig, common
from mlc_bridge.models.decoder_spec import DecoderFamily, DecoderSpec, Names, Rope, sizes

NAMES = Names(
    embed=("transformer.embd", "model.embed_tokens"),
    layer=("transformer.h.{}", "model.layers.{}"),
    norm=("transformer.norm", "model.norm"),
    qkv=("mixer.qkv_proj", "self_attn.qkv_proj"),
    o=("mixer.out_proj", "self_attn.o_proj"),
    gate_up=("mlp.gate_up_proj", "mlp.gate_up_proj"),
    attn_norm=("ln", "input_layernorm"),
)


@dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    """MLC's ``model_config`` block of a phi3; ``sliding_window`` is ours, when there is one."""

    model_type: str
    max_position_embeddings: int
    position_embedding_base: float
    rope_scaling: dict[str, Any] | None
    original_max_position_embeddings: int
    tie_word_embeddings: bool
    partial_rotary_factor: float
    sliding_window: int | None

    def asdict(self) -> dict[str, Any]:
        block = super().asdict()
        return (
            block if self.sliding_window else {k: block[k] for k in block if k != "sliding_window"}
        )


class Phi3(DecoderFamily):
    name = "phi3"

    def config(self, hf: Mapping[str, Any], **overrides: Any) -> Phi3Config:
        flat = hf_config.flatten(hf, overrides)
        hf_config.expect(flat, "hidden_act", ("silu",), default="silu")
        largest = hf_config.integer(flat, "max_position_embeddings")
        rope = {**flat, **(flat.get("rope_parameters") or {})}
        trained = hf_config.integer(
            {**rope, **(flat.get("rope_scaling") or {})},
            "original_max_position_embeddings",
            default=largest,
        )
        return Phi3Config(
            **common(flat),
            model_type="phi3",
            max_position_embeddings=largest,
            position_embedding_base=hf_config.rope_theta(flat),
            rope_scaling=_longrope(flat, largest, trained),
            original_max_position_embeddings=trained,
            tie_word_embeddings=bool(flat.get("tie_word_embeddings", False)),
            partial_rotary_factor=hf_config.number(rope, "partial_rotary_factor", 1.0),
            sliding_window=flat.get("sliding_window"),
        )

    def spec(self, config: Phi3Config) -> DecoderSpec:
        scaling, rotary = config.rope_scaling, int(config.head_dim * config.partial_rotary_factor)
        factors = None
        if scaling is not None:
            beyond = config.context_window_size > config.original_max_position_embeddings
            factors = tuple(scaling["long_factor" if beyond else "short_factor"])
        return DecoderSpec(
            **sizes(config),
            rope=Rope(config.position_embedding_base, 1.0, scaling, rotary, factors),
            names=NAMES,
            tied=config.tie_word_embeddings,
            window=config.sliding_window,
            local=(config.sliding_window is not None,) * config.num_hidden_layers,
        )


def _longrope(flat: Mapping[str, Any], largest: int, trained: int) -> dict[str, Any] | None:
    """MLC's block, which carries both lengths; ``su`` is the older name of the same thing."""
    scaling = hf_config.rope_scaling(flat, ("longrope", "su"))
    if scaling is None:
        return None
    lists = {key: [float(f) for f in scaling[key]] for key in ("short_factor", "long_factor")}
    return {
        **lists,
        "type": "longrope",
        "rope_type": "longrope",
        "max_position_embeddings": largest,
        "original_max_position_embeddings": trained,
    }


PHI3 = Phi3()

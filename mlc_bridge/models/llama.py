"""Llama 1, 2, 3, 3.1, 3.2: rotary GQA decoder, RMS norms before each block, SiLU-gated MLP.

Rope scaling is ``llama3`` (Llama 3.1 on); the head may be tied to the embedding. Query, key and
value are fused to ``qkv_proj``, gate and up to ``gate_up_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlc_bridge.models import hf_config
from mlc_bridge.models.decoder_spec import DecoderFamily, DecoderSpec, Rope


@dataclass(frozen=True)
class LlamaConfig:
    """MLC's ``model_config`` block of a llama, key by key."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    rms_norm_eps: float
    vocab_size: int
    tie_word_embeddings: bool
    position_embedding_base: float
    rope_scaling: dict[str, Any] | None
    context_window_size: int
    prefill_chunk_size: int
    num_key_value_heads: int
    head_dim: int
    tensor_parallel_shards: int = 1
    pipeline_parallel_stages: int = 1
    max_batch_size: int = 128
    disaggregation: bool = False
    float_layers: tuple[str, ...] = ()

    def asdict(self) -> dict[str, Any]:
        """``float_layers`` is ours and stands there only when the checkpoint has some."""
        block = asdict(self)
        block["float_layers"] = list(self.float_layers)
        return (
            block if self.float_layers else {k: v for k, v in block.items() if k != "float_layers"}
        )


class Llama(DecoderFamily):
    name = "llama"

    def config(self, hf: Mapping[str, Any], **overrides: Any) -> LlamaConfig:
        flat = hf_config.flatten(hf, overrides)
        hf_config.single_device(flat)
        for switch in ("attention_bias", "mlp_bias"):
            hf_config.expect(flat, switch, (False,), default=False)
        hf_config.expect(flat, "hidden_act", ("silu",), default="silu")
        heads, kv_heads, head_dim = hf_config.heads(flat)
        limits = hf_config.limits(flat)
        return LlamaConfig(
            hidden_size=hf_config.integer(flat, "hidden_size"),
            intermediate_size=hf_config.integer(flat, "intermediate_size"),
            num_attention_heads=heads,
            num_hidden_layers=hf_config.integer(flat, "num_hidden_layers"),
            rms_norm_eps=hf_config.number(flat, "rms_norm_eps"),
            vocab_size=hf_config.integer(flat, "vocab_size"),
            tie_word_embeddings=bool(flat.get("tie_word_embeddings", False)),
            position_embedding_base=hf_config.rope_theta(flat),
            rope_scaling=hf_config.rope_scaling(flat, ("llama3",)),
            context_window_size=limits.context,
            prefill_chunk_size=limits.chunk,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_batch_size=limits.batch,
            disaggregation=bool(flat.get("disaggregation", False)),
            float_layers=tuple(flat.get("float_layers", ())),
        )

    def spec(self, config: LlamaConfig) -> DecoderSpec:
        return DecoderSpec(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
            eps=config.rms_norm_eps,
            rope=Rope(config.position_embedding_base, scaling=config.rope_scaling),
            tied=config.tie_word_embeddings,
            float_layers=config.float_layers,
        )


LLAMA = Llama()

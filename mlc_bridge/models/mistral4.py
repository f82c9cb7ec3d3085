"""Mistral Small 4: latent attention whose queries grow with the logarithm of their position."""

from __future__ import annotations

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Norm, Settings
from mlc_bridge.models.decoder.deepseek import (
    RENAMED,
    DeepseekConfig,
    deepseek_fields,
    grouped,
    layers,
)

# Of the class in transformers.
ROPE_KEYS = ("llama_4_scaling_beta", "max_position_embeddings")
YARN = {
    "rope_type": "yarn",
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
    "partial_rotary_factor": 0.5,
}
DEFAULTS = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_interleave": True,
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 1048576,
    "rms_norm_eps": 1e-6,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 2048,
}


class Mistral4(DecoderFamily):
    name = "mistral4"
    defaults = DEFAULTS
    renamed = RENAMED
    rope_keys = ROPE_KEYS

    def read(self, flat: Settings) -> DeepseekConfig:
        fields = deepseek_fields(flat)
        if all(flat.get(key) is None for key in ("rope_theta", "rope_scaling", "rope_parameters")):
            fields |= {"rope_scaling": YARN}
        return DeepseekConfig(**fields)

    def decoder(self, config: DeepseekConfig) -> Decoder:
        norm, tied = Norm(config.rms_norm_eps), config.tie_word_embeddings
        return Decoder.of(config, layers(config, grouped(config)), norm, tied=tied)


MISTRAL4 = Mistral4()

"""GLM 4.7 Flash: latent attention as in DeepSeek V3; see ``decoder/deepseek.py``."""

from __future__ import annotations

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Norm, Settings, hf_config
from mlc_bridge.models.decoder.deepseek import (
    RENAMED,
    DeepseekConfig,
    corrected,
    deepseek_fields,
    layers,
)

# Of the class in transformers.
DEFAULTS = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_interleave": True,
    "vocab_size": 154880,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 768,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "routed_scaling_factor": 1.8,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 1536,
}


class Glm4MoeLite(DecoderFamily):
    name = "glm4_moe_lite"
    defaults = DEFAULTS
    renamed = RENAMED

    def read(self, flat: Settings) -> DeepseekConfig:
        hf_config.expect(flat, "scoring_func", ("sigmoid", None))
        hf_config.expect(flat, "topk_method", ("noaux_tc", None))
        return DeepseekConfig(**deepseek_fields(flat))

    def decoder(self, config: DeepseekConfig) -> Decoder:
        norm, tied = Norm(config.rms_norm_eps), config.tie_word_embeddings
        return Decoder.of(config, layers(config, corrected(config)), norm, tied=tied)


GLM4_MOE_LITE = Glm4MoeLite()

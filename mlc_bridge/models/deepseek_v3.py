"""DeepSeek V3 and R1, Moonlight, Kimi K2: latent attention; see ``decoder/deepseek.py``."""

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
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_group": 8,
    "topk_group": 4,
    "moe_intermediate_size": 2048,
}


class DeepseekV3(DecoderFamily):
    name = "deepseek_v3"
    defaults = DEFAULTS
    renamed = RENAMED

    def read(self, flat: Settings) -> DeepseekConfig:
        hf_config.expect(flat, "scoring_func", ("sigmoid", None))
        hf_config.expect(flat, "topk_method", ("noaux_tc", None))
        return DeepseekConfig(**deepseek_fields(flat))

    def decoder(self, config: DeepseekConfig) -> Decoder:
        norm, tied = Norm(config.rms_norm_eps), config.tie_word_embeddings
        return Decoder.of(config, layers(config, corrected(config)), norm, tied=tied)


DEEPSEEK_V3 = DeepseekV3()

"""DeepSeek V2 (and V2 Lite): latent attention and a mixture; see ``decoder/deepseek.py``."""

from __future__ import annotations

from dataclasses import replace

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Norm, Settings, hf_config
from mlc_bridge.models.decoder.deepseek import (
    RENAMED,
    DeepseekConfig,
    deepseek_fields,
    grouped,
    layers,
)

# Of the class in transformers.
DEFAULTS = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_interleave": True,
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "mlp_bias": False,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "routed_scaling_factor": 1.0,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "moe_intermediate_size": 1407,
}


class DeepseekV2(DecoderFamily):
    name = "deepseek_v2"
    defaults = DEFAULTS
    renamed = RENAMED

    def read(self, flat: Settings) -> DeepseekConfig:
        hf_config.expect(flat, "mlp_bias", (False,))
        hf_config.expect(flat, "norm_topk_prob", (False, None))
        hf_config.expect(flat, "scoring_func", ("softmax", None))
        fields = deepseek_fields(flat)
        greedy = hf_config.expect(flat, "topk_method", ("greedy", "group_limited_greedy"))
        alone = {"n_group": 1, "topk_group": 1} if greedy == "greedy" else {}
        return DeepseekConfig(**{**fields, **alone})

    def decoder(self, config: DeepseekConfig) -> Decoder:
        norm, tied = Norm(config.rms_norm_eps), config.tie_word_embeddings
        return Decoder.of(config, layers(config, replace(grouped(config), top=1)), norm, tied=tied)


DEEPSEEK_V2 = DeepseekV2()

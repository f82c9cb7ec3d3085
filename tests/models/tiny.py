"""Tiny random Hugging Face checkpoints, one per architecture and variant, made on the spot.

Weights are drawn wide (``initializer_range``), so that attention is far from uniform: a window, a
cap or a wrong rotation then shows in the logits by much more than any tolerance here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

WINDOW = 12
LIMIT = 64  # of phi3's short rotary factors
SHARED = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.02 * i for i in range(24)],
    "long_factor": [1.5 + 0.1 * i for i in range(24)],
    "original_max_position_embeddings": LIMIT,
    "partial_rotary_factor": 0.75,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "head_dim": 32, "rope_parameters": LLAMA3_ROPE},
    "llama-mha": {"model_type": "llama", "num_key_value_heads": 4},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"attention_bias": True},
    "gemma2": {
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 48,
    },
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window_pattern": 2,
        "rope_parameters": GEMMA3_ROPE,
        "query_pre_attn_scalar": 48,
    },
    "phi3": {
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": LIMIT,
        "sliding_window": WINDOW,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "moe_intermediate_size": 256,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
SPARSE = {"num_experts_per_tok": 3, "moe_intermediate_size": 128}
# Decoders that MLC LLM does not know: compared in float32, in ``test_classic.py``.
CLASSIC: dict[str, dict[str, Any]] = {
    "seed_oss": {"attention_out_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "smollm3": {"no_rope_layers": [1, 0], "attention_bias": True, "tie_word_embeddings": False},
    "olmo2": {"attention_bias": True},
    "exaone4": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmo3": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "glm4": {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}},
    "ernie4_5": {"use_bias": True},
    "gemma": {"attention_bias": True},
    "cohere": {"attention_bias": True, "logit_scale": 0.5, "tie_word_embeddings": False},
    "cohere2": {
        "logit_scale": 0.5,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "nemotron": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4},
    },
    "starcoder2": {"sliding_window": WINDOW},
    "hunyuan_v1_dense": {
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "dynamic",
            "rope_theta": 1e4,
            "alpha": 50.0,
            "factor": 1.0,
        },
    },
    "internlm3": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 6.0},
        "max_position_embeddings": 20,
    },
    "ministral3": {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.5}},
    "qwen2_moe": {
        **SPARSE,
        "num_experts": 8,
        "shared_expert_intermediate_size": 128,
        "mlp_only_layers": [0],
        "norm_topk_prob": True,
    },
    "glm4_moe": {
        **SPARSE,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "attention_bias": True,
        "use_qk_norm": True,
        "num_mtp_layers": 0,
    },
    "gpt_oss": {
        "intermediate_size": 128,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "swiglu_limit": 1.5,
        "rope_parameters": {**YARN, "truncate": False},
    },
    "ernie4_5_moe": {
        "moe_intermediate_size": 128,
        "moe_num_experts": 8,
        "moe_k": 3,
        "moe_layer_start_index": 1,
    },
}
# With recurrent layers; compared in ``test_hybrids.py``.
SMALL = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 3}
EXPERTS = {
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
SHARED_EXPERT = {**EXPERTS, "shared_expert_intermediate_size": 64}
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {
        **SMALL,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_multiple_of": 64,
        "conv_bias": True,
    },
    "qwen3_5_text": {
        **SMALL,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_key_head_dim": 24,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "partial_rotary_factor": 0.5,
    },
    "qwen3_next": {
        **SMALL,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "mlp_only_layers": [0],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        **SHARED_EXPERT,
    },
    "granitemoehybrid": {
        **SMALL,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_n_heads": 8,
        "mamba_n_groups": 2,
        "mamba_d_state": 24,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
    },
    "nemotron_h": {
        **SMALL,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": 24,
        "n_routed_experts": 4,
        "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 64,
        "n_group": 2,
        "topk_group": 1,
    },
}
# Made of parts that others of this file show; their weights are converted, nothing is compiled.
SAME_PARTS: dict[str, dict[str, Any]] = {
    "lfm2_moe": {
        **SMALL,
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
        **EXPERTS,
    },
    "qwen3_5_moe_text": {
        **SMALL,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        **SHARED_EXPERT,
    },
}
# Mixtures of parts that others of this file show; nothing is compiled.
MIXED: dict[str, dict[str, Any]] = {
    "granitemoe": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
    },
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": [2, 3]},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "mellum": {
        **SPARSE,
        "num_experts": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "mlp_layer_types": ["sparse", "dense"],
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}
LATENT = {
    **SMALL,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
MLA: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**LATENT, "q_lora_rank": None},
    "deepseek_v3": {
        **LATENT,
        "q_lora_rank": 64,
        "v_head_dim": 48,  # wider than keys
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
        "n_group": 2,
        "topk_group": 1,
    },
}
SAME_PARTS |= {
    "granitemoehybrid-mixture": {
        **HYBRIDS["granitemoehybrid"],
        "model_type": "granitemoehybrid",
        "num_local_experts": 4,
    },
    "mistral4": {**LATENT, "q_lora_rank": 64, "num_hidden_layers": 1},
    "glm4_moe_lite": {**LATENT, "q_lora_rank": 64, "mlp_layer_types": ["dense", "sparse"]},
}
# Text models that transformers makes as parts of a whole only.
ALONE = {"mistral4": transformers.Mistral4ForCausalLM._from_config}
# Checkpoints whose experts are one tensor a layer.
JOINED = {"gpt_oss", "granitemoe", "granitemoehybrid-mixture"}


def save(name: str, directory: Path) -> Path:
    """Write the checkpoint of that name in float32, as transformers saves it."""
    fields = {**SHARED, **(MODELS | CLASSIC | HYBRIDS | SAME_PARTS | MIXED | MLA)[name]}
    return save_model(fields.pop("model_type", name), fields, directory, seed=len(name))


def save_model(kind: str, fields: dict[str, Any], directory: Path, seed: int = 0) -> Path:
    """The same of any class of transformers."""
    config = transformers.AutoConfig.for_model(kind, **fields)
    torch.manual_seed(seed)
    make = ALONE.get(kind, transformers.AutoModelForCausalLM.from_config)
    model = make(config, dtype=torch.float32)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if "norm" in key or key.endswith(("bias", "sinks")):  # ones and zeros show nothing
                tensor.normal_(std=0.2).add_(0.7 if "norm" in key else 0.0)
            elif "conv" in key and tensor.ndim == 3:
                tensor.normal_(std=0.5)
    model.save_pretrained(directory)
    return directory

"""Nemotron H (Nemotron Nano 2 and 3): every layer is one part alone behind a norm - Mamba 2,
attention without positions, an MLP or a mixture; see ``decoder/nemotron_parts.py``.
"""

from __future__ import annotations

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Norm, Settings, Single, hf_config
from mlc_bridge.models.decoder.config import common
from mlc_bridge.models.decoder.nemotron_parts import (
    NAMES,
    SIZES,
    NemotronHConfig,
    kinds_of,
    parts_of,
)

# Of the class in transformers.
DEFAULTS = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    "mlp_bias": False,
    "use_bias": False,
    "use_conv_bias": True,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "time_step_min": 0.001,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
}
# Of how weights are made, and of how kernels are run.
HARMLESS = (
    "num_logits_to_keep", "use_mamba_kernels", "expand", "time_step_max", "time_step_limit",
    "time_step_floor", "chunk_size", "mamba_ssm_cache_dtype", "num_nextn_predict_layers",
    "mtp_layers_block_type", "residual_in_fp32", "rescale_prenorm_residual",
    "moe_shared_expert_overlap", "mamba_proj_bias", "num_hidden_layers", "n_shared_experts",
    "mtp_hybrid_override_pattern", "hidden_act",
)  # fmt: skip


class NemotronH(DecoderFamily):
    name = "nemotron_h"
    defaults = DEFAULTS
    renamed = {  # noqa: RUF012
        "layer_norm_epsilon": "rms_norm_eps",
        "layer_types": "layers_block_type",
        "num_local_experts": "n_routed_experts",
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_conv_bias": "use_conv_bias",
        "mamba_dt_min": "time_step_min",
    }

    def read(self, flat: Settings) -> NemotronHConfig:
        for key in HARMLESS:
            flat.get(key)
        hf_config.expect(flat, "mlp_hidden_act", ("relu2",))
        hf_config.expect(flat, "mamba_hidden_act", ("silu",))
        hf_config.expect(flat, "moe_latent_size", (None,))
        hf_config.expect(flat, "sliding_window", (None,))
        hf_config.expect(flat, "attention_bias", (False, None))
        kinds = kinds_of(flat)
        return NemotronHConfig(
            **common(flat.having(num_hidden_layers=len(kinds))),
            **{key: hf_config.integer(flat, key) for key in SIZES},  # type: ignore[arg-type]
            layers_block_type=kinds,
            tie_word_embeddings=bool(flat["tie_word_embeddings"]),
            mlp_bias=bool(flat["mlp_bias"]),
            use_bias=bool(flat["use_bias"]),
            use_conv_bias=bool(flat["use_conv_bias"]),
            time_step_min=float(flat["time_step_min"]),
            routed_scaling_factor=hf_config.number(flat, "routed_scaling_factor"),
            norm_topk_prob=bool(flat["norm_topk_prob"]),
        )

    def decoder(self, config: NemotronHConfig) -> Decoder:
        norm, parts = Norm(config.rms_norm_eps), parts_of(config)
        layers = (Single(parts[kind], norm) for kind in config.layers_block_type)
        return Decoder.of(config, layers, norm, tied=config.tie_word_embeddings, names=NAMES)


NEMOTRON_H = NemotronH()

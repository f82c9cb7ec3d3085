"""Granite 4: granite whose layers are Mamba 2 or attention (mostly without positions), with one MLP
for every token and, in the larger ones, experts beside it; see ``decoder/granite_hybrid.py``.
"""

from __future__ import annotations

from mlc_bridge.models.decoder import (
    Decoder,
    DecoderFamily,
    Layer,
    Norm,
    Pre,
    Settings,
    classic_fields,
    hf_config,
)
from mlc_bridge.models.decoder.granite_hybrid import (
    FULL,
    INFINITE,
    LINEAR,
    OLD,
    GraniteMoeHybridConfig,
    mixer,
    mlp,
)

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
    "shared_intermediate_size": 1024,
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


class GraniteMoeHybrid(DecoderFamily):
    name = "granitemoehybrid"
    defaults = DEFAULTS
    renamed = {"layers_block_type": "layer_types"}  # noqa: RUF012

    def read(self, flat: Settings) -> GraniteMoeHybridConfig:
        for key in ("mamba_chunk_size", "init_method"):  # of HF's work, and of training
            flat.get(key)
        hf_config.expect(flat, "normalization_function", ("rmsnorm", None))
        layers = hf_config.integer(flat, "num_hidden_layers")
        kinds = [OLD.get(k, k) for k in flat.get("layer_types") or [LINEAR] * layers]
        heads = hf_config.integer(flat, "mamba_n_heads")
        wide = hf_config.integer(flat, "mamba_expand") * hf_config.integer(flat, "hidden_size")
        auto = flat.get("mamba_d_head") in (None, "auto")
        least, largest = flat.get("time_step_limit") or (0.0, None)
        return GraniteMoeHybridConfig(
            **classic_fields(flat),
            attention_bias=bool(flat["attention_bias"]),
            embedding_multiplier=hf_config.number(flat, "embedding_multiplier"),
            attention_multiplier=hf_config.number(flat, "attention_multiplier"),
            residual_multiplier=hf_config.number(flat, "residual_multiplier"),
            logits_scaling=hf_config.number(flat, "logits_scaling"),
            position_embedding_type=flat.get("position_embedding_type"),
            layer_types=hf_config.kinds_of_layers(flat, kinds, (FULL, LINEAR)),
            num_local_experts=hf_config.integer(flat, "num_local_experts", least=0),
            num_experts_per_tok=hf_config.integer(flat, "num_experts_per_tok", least=0),
            shared_intermediate_size=hf_config.integer(flat, "shared_intermediate_size"),
            mamba_n_heads=heads,
            mamba_n_groups=hf_config.integer(flat, "mamba_n_groups"),
            mamba_d_state=hf_config.integer(flat, "mamba_d_state"),
            mamba_d_head=wide // heads if auto else hf_config.integer(flat, "mamba_d_head"),
            mamba_d_conv=hf_config.integer(flat, "mamba_d_conv", least=2),
            mamba_conv_bias=bool(flat["mamba_conv_bias"]),
            mamba_proj_bias=bool(flat["mamba_proj_bias"]),
            time_step_limit=[least, None if largest in INFINITE else largest],
        )

    def decoder(self, config: GraniteMoeHybridConfig) -> Decoder:
        norm = Norm(config.rms_norm_eps)
        join, every = Pre(norm, scale=config.residual_multiplier), mlp(config)
        layers = (Layer(mixer(config, kind), every, join) for kind in config.layer_types)
        return Decoder.of(
            config,
            layers,
            norm,
            tied=config.tie_word_embeddings,
            embed_scale=config.embedding_multiplier,
            logit_scale=1.0 / config.logits_scaling,
        )


GRANITEMOEHYBRID = GraniteMoeHybrid()

"""A model's config as one flat mapping that knows which of its keys were read.

Values come from HF's ``config.json`` (its ``text_config`` where there is one) or from MLC's own
``model_config`` block, then from ``defaults``: transformers leaves out of a config what its class
has as default, so the same defaults must stand here. A key that is given as null is null, as there.

A key that nobody reads is harmless (``HARMLESS``: training, generation, bookkeeping), or changes
the maths (``MATHS``: refused unless it has the value that means "off"), or is unknown and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.models.decoder.hf_config import block_of

HARMLESS = frozenset(
    """_attn_implementation _name_or_path add_cross_attention architectures attention_dropout
    attn_implementation auto_map bos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size decoder_start_token_id dtype embd_pdrop eod_token_id
    embedding_dropout eos_token_id finetuning_task hidden_dropout id2label initializer_range
    is_decoder is_encoder_decoder label2id model_type num_labels output_attentions
    output_hidden_states output_router_logits pad_token_id prefix pretraining_tp problem_type
    quantization_config resid_pdrop residual_dropout return_dict rope_theta router_aux_loss_coef
    router_jitter_noise sep_token_id task_specific_params
    tie_encoder_decoder tokenizer_class torch_dtype torchscript transformers_version
    transformers.js_config unsloth_fixed unsloth_version use_cache z_loss_coefficient
    do_sample max_length max_new_tokens min_p repetition_penalty temperature top_k top_p
    num_nextn_predict_layers mtp_layer_types mtp_mlp_layer_types
    float_layers split_layers linear_layers layer_schemes model_config text_config
    compression_config quantize""".split()  # noqa: SIM905
)
MATHS: dict[str, tuple[Any, ...]] = {
    "alibi": (False,),
    "attention_bias": (False,),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "layer_types": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "mlp_only_layers": ([],),
    "n_routed_experts": (0,),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_kv_shared_layers": (0,),
    "num_local_experts": (0,),
    "parallel_attn": (False,),
    "partial_rotary_factor": (1,),
    "qk_layernorm": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "scale_emb": (1,),
    "use_bias": (False,),
    "use_bidirectional_attention": (False,),
    "use_qk_norm": (False,),
    "use_qkv_bias": (False,),
    "use_sliding_window": (False,),
}
"""Key -> the values beside null with which it changes nothing."""


class Settings(Mapping[str, Any]):
    """``given`` before ``defaults``; remembers what was asked for."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._given, self._defaults = dict(given), defaults
        self._read: set[str] = set()

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        overrides: Mapping[str, Any],
        defaults: Mapping[str, Any],
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> Settings:
        """Text model of a nested config, MLC's block, then every override that is given.

        A key of ``renamed`` counts as the one that it stands for.
        """
        key = "model_config" if config.get("model_config") else "text_config"
        inner = block_of(config, key)
        outer = {k: v for k, v in config.items() if k not in ("model_config", "text_config")}
        wishes = {k: v for k, v in overrides.items() if v is not None}
        given = {**outer, **inner, **wishes}
        for theirs in given.keys() & renamed.keys():
            given[renamed[theirs]] = given.pop(theirs)
        return cls(given, defaults)

    def having(self, **values: Any) -> Settings:
        """The same with ``values`` on top; what is read of it is read of this."""
        other = Settings({**self._given, **values}, self._defaults)
        other._read = self._read
        return other

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._given[key] if key in self._given else self._defaults[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._defaults, **self._given})

    def __len__(self) -> int:
        return len({**self._defaults, **self._given})

    def unread(self) -> tuple[str, ...]:
        """The given keys that nobody asked for, that are not known to be harmless, and not off."""
        left = self._given.keys() - self._read - HARMLESS
        off = {key for key in left if self._given[key] in (None, *MATHS.get(key, ()))}
        return tuple(sorted(left - off))

    def refuse_unread(self) -> None:
        """ConfigError for an unread key that changes what the model computes."""
        for key in self.unread():
            value = self._given[key]
            if key in MATHS:
                raise ConfigError(
                    f"{self._given.get('model_type', 'the model')}: {key} changes what the model "
                    "computes and is not supported",
                    where="config",
                    found=repr(value),
                )

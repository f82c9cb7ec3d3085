"""No key that changes what a model computes is ignored, and what is left out has HF's default.

The reference is transformers' own config classes and models: a switch that is felt by their logits
must be felt by our spec, or refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import CLASSIC, HYBRIDS, MIXED, MLA, SAME_PARTS, SHARED, YARN
from tiny import MODELS as TINY

from mlc_bridge.errors import ConfigError
from mlc_bridge.models import MODELS
from mlc_bridge.models.decoder.settings import HARMLESS, MATHS

FAMILIES = TINY | CLASSIC | HYBRIDS | SAME_PARTS | MIXED | MLA
FIELDS = {name: {**SHARED, **own} for name, own in FAMILIES.items()}
TINY_ONES = [name for name in FIELDS if name in MODELS]


# What a class needs and has no default for.
NEEDED: dict[str, dict[str, Any]] = {"deepseek_v2": {"num_experts_per_tok": 2}}


def of_class(name: str) -> dict[str, Any]:
    return transformers.AutoConfig.for_model(name, **NEEDED.get(name, {})).to_dict()


@pytest.mark.parametrize("name", MODELS)
def test_defaults_are_those_of_transformers(name: str) -> None:
    """A config that says nothing, and one in which transformers says everything."""
    short = {"model_type": name, **NEEDED.get(name, {})}
    assert MODELS[name].config(short) == MODELS[name].config(of_class(name))


@pytest.mark.parametrize("name", MODELS)
def test_every_key_of_the_class_is_read_or_harmless(name: str) -> None:
    assert MODELS[name].unused(of_class(name)) == ()


@pytest.mark.parametrize("name", MODELS)
def test_unknown_keys_are_named(name: str) -> None:
    hf = of_class(name)
    assert MODELS[name].unused({**hf, "wavelet_depth": 3, "top_k": 5}) == ("wavelet_depth",)


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters", "per layer type"])
def test_keys_of_a_rope_block(where: str) -> None:
    """What its kind does not have is named; what turns otherwise elsewhere is refused."""
    block = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    name = "gemma3_text" if where == "per layer type" else "granite"
    hf = transformers.AutoConfig.for_model(name).to_dict()

    def told(block: dict[str, Any]) -> dict[str, Any]:
        if where != "per layer type":
            return {**hf, "rope_parameters": None, where: block}
        return {**hf, "rope_parameters": {**hf["rope_parameters"], "full_attention": block}}

    place = "rope_parameters.full_attention" if where == "per layer type" else where
    assert MODELS[name].unused(told(block)) == ()
    strange = told({**block, "beta_fast": 32, "twist": 1})
    assert MODELS[name].unused(strange) == (f"{place}.beta_fast", f"{place}.twist")
    for key in ("alpha", "llama_4_scaling_beta"):
        with pytest.raises(ConfigError, match=rf"{key}.*not supported"):
            MODELS[name].config(told({**block, key: 2.0}))


@pytest.mark.parametrize("key", MATHS)
def test_a_key_of_effect_is_refused_unless_it_is_off(key: str) -> None:
    hf = transformers.AutoConfig.for_model("llama").to_dict()
    hf.pop(key, None)
    plain = MODELS["llama"].config(hf)
    for off in (None, *MATHS[key]):
        assert MODELS["llama"].config({**hf, key: off}) == plain
    with pytest.raises(ConfigError, match=key):
        MODELS["llama"].config({**hf, key: ["sliding_attention"]})


def test_no_key_is_both() -> None:
    assert not HARMLESS & MATHS.keys()


SWITCHES: list[tuple[str, str, Any]] = [
    ("llama", "hidden_act", "gelu"),
    ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 30.0}),
    ("llama", "rms_norm_eps", 0.5),
    ("mistral", "sliding_window", 5),
    ("mistral", "sliding_window", None),
    ("qwen2", "use_sliding_window", True),
    ("qwen3", "rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    ("gemma2", "attn_logit_softcapping", None),
    ("gemma2", "final_logit_softcapping", None),
    ("gemma2", "query_pre_attn_scalar", 9),
    ("gemma2", "sliding_window", 5),
    ("gemma2", "layer_types", ["full_attention", "sliding_attention"]),
    ("gemma2", "hidden_activation", "silu"),
    ("gemma3_text", "use_bidirectional_attention", True),
    ("gemma3_text", "layer_types", ["full_attention", "full_attention"]),
    ("gemma3_text", "query_pre_attn_scalar", 9),
    ("gemma3_text", "final_logit_softcapping", 2.0),
    ("phi3", "sliding_window", 5),
    ("phi3", "rope_parameters", {**TINY["phi3"]["rope_parameters"], "attention_factor": 3.0}),
    ("phi3", "rope_parameters", {**TINY["phi3"]["rope_parameters"], "factor": 64.0}),
    ("mixtral", "num_experts_per_tok", 1),
    ("mixtral", "sliding_window", 5),
    ("qwen3_moe", "norm_topk_prob", False),
    ("qwen3_moe", "num_experts_per_tok", 1),
    ("granite", "embedding_multiplier", 1.0),
    ("granite", "attention_multiplier", 1.0),
    ("granite", "residual_multiplier", 1.0),
    ("granite", "logits_scaling", 1.0),
    ("smollm3", "no_rope_layers", [1, 1]),
    ("smollm3", "use_sliding_window", True),
    ("exaone4", "sliding_window", 5),
    ("exaone4", "layer_types", ["full_attention", "full_attention"]),
    ("olmo3", "layer_types", ["full_attention", "full_attention"]),
    ("olmo3", "rope_parameters", None),
    ("glm4", "rope_parameters", {"partial_rotary_factor": 1.0, "rope_theta": 1e4}),
    ("seed_oss", "rope_parameters", {**CLASSIC["seed_oss"]["rope_parameters"], "factor": 16.0}),
    ("seed_oss", "hidden_act", "gelu"),
    ("cohere", "logit_scale", 1.0),
    ("cohere2", "logit_scale", 1.0),
    ("cohere2", "sliding_window", 5),
    ("cohere2", "layer_types", ["full_attention", "full_attention"]),
    ("nemotron", "rope_parameters", {"partial_rotary_factor": 1.0, "rope_theta": 1e4}),
    ("nemotron", "hidden_act", "silu"),
    ("nemotron", "norm_eps", 0.5),
    ("starcoder2", "sliding_window", None),
    ("starcoder2", "norm_epsilon", 0.5),
    ("lfm2", "layer_types", ["full_attention"] * 3),
    ("lfm2", "conv_L_cache", 4),
    ("lfm2", "conv_bias", False),
    ("lfm2", "block_ffn_dim_multiplier", 2.0),
    ("lfm2", "norm_eps", 0.5),
    ("lfm2_moe", "num_dense_layers", 0),
    ("lfm2_moe", "norm_topk_prob", False),
    ("qwen3_5_text", "partial_rotary_factor", 1.0),
    ("qwen3_next", "mlp_only_layers", []),
    ("qwen3_next", "norm_topk_prob", False),
    ("hunyuan_v1_dense", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
    ("ministral3", "rope_parameters", {**YARN, "llama_4_scaling_beta": 0.0}),
    ("ministral3", "sliding_window", 5),
]


@pytest.mark.parametrize(("name", "key", "value"), SWITCHES)
def test_a_switch_that_changes_the_logits_changes_the_graph(
    name: str, key: str, value: Any
) -> None:
    fields = FIELDS[name]
    changed = {**fields, key: value}
    if key == "use_sliding_window":
        changed |= {"sliding_window": 5, "max_window_layers": 1}
    apart = (logits(name, fields) - logits(name, changed)).abs().max()
    assert apart > 1e-2
    arch: Any = MODELS[name]
    before = arch.decoder(arch.config(described(name, fields)))
    try:
        after = arch.decoder(arch.config(described(name, changed)))
    except ConfigError:
        return
    assert after != before


def described(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The config.json that transformers writes."""
    return transformers.AutoConfig.for_model(name, **fields).to_diff_dict()


def logits(name: str, fields: dict[str, Any]) -> torch.Tensor:
    config = transformers.AutoConfig.for_model(name, **fields)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.arange(3, 27)[None]).logits


@pytest.mark.parametrize("name", TINY_ONES)
def test_what_transformers_leaves_out_is_known(name: str, tmp_path: Path) -> None:
    """config.json holds what differs from the class; both forms must be read alike."""
    config = transformers.AutoConfig.for_model(name, **FIELDS[name])
    config.save_pretrained(tmp_path)
    short = transformers.PreTrainedConfig.get_config_dict(tmp_path)[0]
    assert MODELS[name].config(short) == MODELS[name].config(config.to_dict())
    assert MODELS[name].unused(short) == ()

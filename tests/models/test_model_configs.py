"""Configs and weight tables are plain data: MLC's blocks and names, any transformers version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SHARED

import mlc_bridge.models
from mlc_bridge.errors import ConfigError
from mlc_bridge.models import MODELS
from mlc_bridge.models.arch import parameters
from mlc_bridge.models.decoder.rope import Rope, rope_of
from mlc_bridge.schemes import SCHEMES

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
WINDOWED = ("mistral", "gemma2", "gemma3_text", "cohere2")
CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_those_mlc_writes(case: str) -> None:
    """Names, shapes and dtypes as MLC LLM's converter stores them."""
    told = golden(case)
    arch = MODELS[told["config"]["model_type"]]
    config = arch.config(told["config"])
    for scheme, expected in told["params"].items():
        found = {
            f"{weight.path}.{suffix}": [list(spec.shape), spec.dtype]
            for weight in arch.weights(config)
            for suffix, spec in parameters(weight, SCHEMES[scheme]).items()
        }
        assert found == expected


def test_block_is_mlcs_own() -> None:
    told = golden("stdlib-llama-7m")
    assert MODELS["llama"].config(told["config"]).asdict() == told["model_config"]


@pytest.mark.parametrize("name", MODELS)
def test_block_reads_back(name: str) -> None:
    """compile sees only the block; it must say everything that config.json said."""
    arch = MODELS[name]
    config = arch.config(hf(name))
    assert arch.config(config.asdict()) == config
    assert json.loads(json.dumps(config.asdict())) == config.asdict()


def hf(name: str, **changes: Any) -> dict[str, Any]:
    """A config.json of the current transformers layout that holds for every architecture."""
    base = {
        **SHARED,
        "model_type": name,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 30_000.0},
        "tie_word_embeddings": name.startswith("gemma"),
        "sliding_window": 128 if name in WINDOWED else None,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    own = {
        "deepseek_v2": experts,
        "mixtral": experts,
        "qwen3_moe": experts,
        "gemma2": {"query_pre_attn_scalar": 64},
        "gemma3_text": {"query_pre_attn_scalar": 64},
        "qwen3_5_text": {"full_attention_interval": 1},
        "qwen3_5_moe_text": {"full_attention_interval": 1},
        "qwen3_next": {"full_attention_interval": 1},
        "lfm2_moe": {"layer_types": None},
    }
    return {**base, **own.get(name, {}), **changes}


WITHOUT_ROPE = ("granitemoehybrid", "nemotron_h")  # such a config, or ever
OF_THEIR_OWN = ("gemma3_text", "gpt_oss", *WITHOUT_ROPE)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in OF_THEIR_OWN])
def test_rope_theta_wherever_it_stands(name: str) -> None:
    arch = MODELS[name]
    new = arch.config(hf(name))
    old = arch.config({**hf(name, rope_parameters=None), "rope_theta": 30_000})
    assert new == old
    assert arch.decoder(new).ropes[0].theta == 30_000


def test_rope_scaling_of_both_layouts() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = hf("llama", rope_parameters=None, rope_theta=500_000.0, rope_scaling=scaling)
    new = hf("llama", rope_parameters={**scaling, "rope_theta": 500_000.0})
    assert MODELS["llama"].config(old) == MODELS["llama"].config(new)
    assert MODELS["llama"].config(new).rope_scaling == scaling


def test_gemma3_rope_of_both_layouts() -> None:
    old = hf("gemma3_text", rope_parameters=None, rope_theta=1e6, rope_local_base_freq=1e4)
    kinds = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new = hf("gemma3_text", rope_parameters=kinds)
    assert MODELS["gemma3_text"].config(old) == MODELS["gemma3_text"].config(new)


def test_text_model_of_a_nested_config() -> None:
    flat = hf("llama")
    nested = {"model_type": "llama", "text_config": flat}
    assert MODELS["llama"].config(nested) == MODELS["llama"].config(flat)


def test_what_configs_leave_out() -> None:
    bare = hf("llama")
    for key in ("head_dim", "num_key_value_heads"):
        bare.pop(key)
    config = MODELS["llama"].config(bare)
    assert (config.head_dim, config.num_key_value_heads) == (64, 4)


def test_limits() -> None:
    config = MODELS["llama"].config
    assert config(hf("llama")).prefill_chunk_size == 512
    short = config(hf("llama"), context_window_size=100)
    assert (short.context_window_size, short.prefill_chunk_size) == (100, 100)
    assert config(hf("llama", max_position_embeddings=131_072)).prefill_chunk_size == 8192
    assert config(hf("llama"), prefill_chunk_size=64, max_batch_size=2).max_batch_size == 2


def test_dynamic_rope_beyond_its_training_wants_the_prompt_at_once() -> None:
    told = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    dynamic, arch = hf("granite", rope_parameters=told), MODELS["granite"]
    assert arch.decoder(arch.config(dynamic)).ropes[0].dynamic is None
    long = arch.config(dynamic, context_window_size=2048, prefill_chunk_size=2048)
    assert arch.decoder(long).ropes[0].dynamic == (4.0, 512)
    assert arch.config(long.asdict()) == long
    with pytest.raises(ConfigError, match=r"prefill_chunk_size.*512.*2048"):
        arch.config(dynamic, context_window_size=2048, prefill_chunk_size=512)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "granite"])
@pytest.mark.parametrize("kind", ["linear", "yarn", "dynamic", "llama3"])
def test_every_kind_of_rope(name: str, kind: str) -> None:
    told = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128}  # fmt: skip
    arch = MODELS[name]
    config = arch.config(hf(name, rope_parameters=told))
    assert arch.config(config.asdict()) == config
    assert arch.decoder(config).ropes == (rope_of(1e4, config.rope_scaling, 64),)


def test_what_mlc_does_not_say_is_left_unsaid() -> None:
    """Blocks of models that MLC knows have its keys alone, unless there is more to say."""
    rope = "rope_scaling"
    for name, *keys in (
        ("mistral", rope, "tie_word_embeddings"),
        ("qwen3", rope),
        ("phi3", "sliding_window"),
    ):
        assert not set(keys) & MODELS[name].config(hf(name)).asdict().keys()
    tied = MODELS["mistral"].config(hf("mistral", tie_word_embeddings=True))
    assert all(weight.role != "lm_head" for weight in MODELS["mistral"].weights(tied))
    assert MODELS["mistral"].config(tied.asdict()) == tied


def test_phi4_rotates_part_of_a_head() -> None:
    plain = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    config = MODELS["phi3"].config(hf("phi3", rope_parameters=plain))
    assert MODELS["phi3"].decoder(config).ropes == (Rope(1e4, rotary_dim=48),)


def longrope(**changes: Any) -> dict[str, Any]:
    block = {"type": "su", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32, **changes}
    phi = hf("phi3", rope_parameters=None, rope_theta=1e4, max_position_embeddings=16_384)
    return phi | {"original_max_position_embeddings": 1024, "rope_scaling": block}


def test_longrope_has_both_lists() -> None:
    arch = MODELS["phi3"]
    config = arch.config(longrope())
    assert arch.config(config.asdict()) == config
    lists = arch.decoder(config).ropes[0].lists
    assert (lists.short, lists.long, lists.trained) == ((1.0,) * 32, (2.0,) * 32, 1024)
    assert lists.amplitude == pytest.approx(1.4**0.5)  # 16 = 2^4 times as long as 2^10
    assert config.restart_beyond == 1024
    assert arch.config(longrope(), context_window_size=1024).restart_beyond is None


@pytest.mark.parametrize(
    ("key", "value", "amplitude"),
    [("attention_factor", 1.25, 1.25), ("factor", 1.0, 1.0), ("factor", 32.0, 1.5**0.5)],
)
def test_longrope_amplitude_as_given(key: str, value: float, amplitude: float) -> None:
    arch = MODELS["phi3"]
    config = arch.config(longrope(**{key: value}))
    assert arch.decoder(config).ropes[0].lists.amplitude == pytest.approx(amplitude)
    assert arch.config(config.asdict()) == config


def test_longrope_that_cannot_be() -> None:
    arch = MODELS["phi3"]
    with pytest.raises(ConfigError, match=r"prefill_chunk_size.*1024"):
        arch.config(longrope(), prefill_chunk_size=1024)
    with pytest.raises(ConfigError, match="31 factors, expected 32"):
        arch.decoder(arch.config(longrope(long_factor=[2.0] * 31)))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"hidden_size": 2.5}, "hidden_size"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"rope_parameters": {"rope_type": "spiral"}}, "rope_type"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("llama", {"pipeline_parallel_stages": 2}, "pipeline_parallel_stages"),
        ("llama", {"max_position_embeddings": None}, "context_window_size"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window"),
        ("qwen2", {"rope_scaling": {"type": "spiral", "factor": 4.0}}, "rope_type"),
        ("mixtral", {"num_experts_per_tok": None}, "num_experts_per_tok"),
        ("gemma2", {"layer_types": ["full_attention", "full_attention"]}, "layer_types"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_what_cannot_be_built_is_named(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MODELS[name].config(hf(name, **change))


def test_no_model_file_is_longer_than_a_screen_or_two() -> None:
    files = Path(mlc_bridge.models.__file__).parent.glob("*.py")
    long = {f.name: n for f in files if (n := len(f.read_text().splitlines())) > 120}
    assert set(long) <= {"arch.py"}  # the contract, no model


def test_float_layers_are_stored_float() -> None:
    """``modules_to_not_convert``: kept in the block, and out of the scheme's hands."""
    arch, scheme = MODELS["llama"], SCHEMES["q4f16_autoawq"]
    kept = "model.layers.0.mlp.down_proj"
    config = arch.config(hf("llama"), float_layers=(kept,))
    assert arch.config(config.asdict()).float_layers == (kept,)
    stored = {w.path: set(parameters(w, scheme, config)) for w in arch.weights(config)}
    assert stored[kept] == {"weight"}
    assert stored["model.layers.1.mlp.down_proj"] == {"qweight", "qzeros", "scales"}

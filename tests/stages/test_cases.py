"""Hostile whole checkpoints, each right or refused with its reason: what no format's test asks.

Every case is a one-layer llama that the test writes itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from recognise_cases import Example, Json, Tensors, fill, write
from safetensors.numpy import load_file
from tool_layouts import gptq_v1, settings

from mlc_bridge import ConvertJob, convert_weight
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import CannotExpress, ConfigError, SourceError, UnknownFormat
from mlc_bridge.schemes import SCHEMES

TINY: Json = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
UP = "model.layers.0.mlp.up_proj.weight"
STATIC = "i8_i8_f16_static"  # says nothing of a float weight
ROUNDING = [n for n, scheme in SCHEMES.items() if scheme.quantizes("linear") and n != STATIC]
WIDE = ("row_scale", "row_scale_dynamic", "nvfp4_f16", "nf4_f16")
"""Endings of float16 schemes whose scales are float32."""


def convert(home: Path, **wish: Any) -> Any:
    return convert_weight(ConvertJob(home, home.parent / "out", **wish))


def floats(dtype: str = "bfloat16") -> Tensors:
    tensors: Tensors = {}
    fill(tensors, TINY, dtype)
    return tensors


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6], ids=str)
@pytest.mark.parametrize("scheme", ROUNDING)
def test_a_weight_that_is_no_number_is_named(scheme: str, value: float, tmp_path: Path) -> None:
    """Rounded where the scheme's numbers reach that far; never codes of an infinite scale."""
    tensors, layer = floats(), "model.layers.0.mlp.gate_up_proj"
    tensors[UP][3, 5] = bfloat16(value)
    home = write(tmp_path / "model", tensors, TINY)
    reaches = SCHEMES[scheme].model_dtype != "float16" or scheme.endswith(WIDE)
    if not (np.isfinite(value) and reaches):
        with pytest.raises(CannotExpress, match=f"^{layer}: .*cannot hold"):
            convert(home, quantization=scheme)
        return
    convert(home, quantization=scheme)
    cache = read_index(tmp_path / "out")
    suffixes = SCHEMES[scheme].params(1024, 256)
    params = {suffix: cache.array(f"{layer}.{suffix}") for suffix in suffixes}
    got = SCHEMES[scheme].decode(params).dequantize()[512 + 3, 5]
    coarse = scheme.startswith("mxfp4")  # its largest value is 6 times a power of two
    assert got == pytest.approx(value, rel=0.25 if coarse else 0.1)


def test_float_parts_of_several_dtypes(tmp_path: Path) -> None:
    """As merges of models leave them: each is narrowed as it is, and what loses bits is told."""
    tensors = floats()
    for name in (UP, "model.layers.0.self_attn.k_proj.weight"):
        tensors[name] = tensors[name].astype(np.float16) * np.float16(1.001)
    report = convert(write(tmp_path / "model", tensors, TINY))
    kept = read_index(tmp_path / "out").array("model.layers.0.mlp.gate_up_proj.weight")
    assert np.array_equal(kept[512:], tensors[UP].astype(bfloat16))
    assert [x for x in report.findings if "2 tensors of float16 are rounded to bfloat16" in x]
    again = convert_weight(ConvertJob(tmp_path / "model", tmp_path / "f16", "q0f16"))
    assert not [x for x in again.findings if "rounded" in x]
    exact = read_index(tmp_path / "f16").array("model.layers.0.mlp.gate_up_proj.weight")
    assert np.array_equal(exact[512:], tensors[UP])
    assert convert_weight(ConvertJob(tmp_path / "model", tmp_path / "q4", "q4f16_1"))


def test_a_config_that_still_speaks_of_quantization(tmp_path: Path) -> None:
    """Float weights saved beside the old settings: the advice reads them."""
    config = {**TINY, "quantization_config": settings("autoawq", 128)}
    home = write(tmp_path / "model", floats(), config)
    with pytest.raises(UnknownFormat, match="--source-format dense reads them"):
        convert(home)
    assert convert(home, source_format="dense").quantization == "q0bf16"


def test_a_quantized_head_needs_no_other_scheme(tmp_path: Path) -> None:
    """It lands in the scheme's own form, tied by the config or not; named, it is rounded."""
    example = Example()
    tensors = example.tensors("gptq v1")
    codes = np.random.default_rng(0).integers(0, 16, (4096, 256)).astype(np.uint8)
    zeros, scales = np.full((4096, 2), 8, np.uint8), np.full((4096, 2), 0.01, np.float16)
    del tensors["lm_head.weight"]
    tensors |= {f"lm_head.{s}": a for s, a in gptq_v1(codes, zeros, scales).items()}
    words = {**settings("gptq v1", 128), "lm_head": True}  # type: ignore[dict-item]
    config = {**example.config, "quantization_config": words}
    home = write(tmp_path / "model", tensors, config)
    assert convert(home).quantization == "q4f16_autoawq"
    cache, scheme = read_index(tmp_path / "out"), SCHEMES["q4f16_autoawq"]
    params = {s: cache.array(f"lm_head.{s}") for s in scheme.params(4096, 256)}
    exact = (codes.astype(np.float32) - 8) * np.float32(np.float16(0.01))
    assert np.array_equal(scheme.decode(params).dequantize(), exact)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_another_head_where_one_table_serves_both(name: str, tmp_path: Path) -> None:
    """transformers has no untied form of these; the file is refused for what it is."""
    config = {**TINY, "model_type": name, "tie_word_embeddings": True, "head_dim": 64}
    tensors: Tensors = {}
    fill(tensors, config, "float16")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert convert(write(tmp_path / "copy", tensors, config)).quantization == "q0f16"
    tensors["lm_head.weight"][-1, -1] += np.float16(0.5)
    with pytest.raises(SourceError, match="one table for embedding and head, the checkpoint two"):
        convert(write(tmp_path / "other", tensors, config))


@pytest.mark.parametrize(
    ("key", "value"),
    [("text_config", 7), ("rope_theta", 0), ("rope_parameters", {"rope_theta": 0.0})],
)
def test_a_config_that_is_wrong_is_not_read_as_silent(
    key: str, value: object, tmp_path: Path
) -> None:
    home = write(tmp_path / "model", floats(), {**TINY, key: value})
    with pytest.raises(ConfigError, match=key if key == "text_config" else "rope_theta"):
        convert(home)


def test_a_text_part_under_names_that_no_rule_knows(tmp_path: Path) -> None:
    """Refused by its names; renamed as the message says, it converts."""
    prefix, example = "transformer.model.", Example()
    inner = {k: v for k, v in example.config.items() if k != "quantization_config"}
    config = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": inner, "quantization_config": settings("autoawq", 128),
    }  # fmt: skip
    moved = {n.replace("model.", prefix, 1): a for n, a in example.tensors().items()}
    moved["vision_tower.norm.weight"] = np.ones(4, np.float16)
    home = write(tmp_path / "whole", moved, config)
    with pytest.raises(SourceError, match=f"begin with model. in place of {prefix}, without") as e:
        convert(home)
    assert "fetch" not in str(e.value).lower()
    stored = load_file(home / "model.safetensors")
    back = {n.replace(prefix, "model."): a for n, a in stored.items() if "vision" not in n}
    assert convert(write(tmp_path / "text", back, config)).quantization == "q4f16_autoawq"

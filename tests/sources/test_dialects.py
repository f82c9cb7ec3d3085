"""Other names for bytes that we read: the same tensors, described in another tool's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from mutants import GOLDEN, outcome, shapes_of, weights, with_config
from safetensors.numpy import load_file, save_file

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import AWQ8, pack
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import SOURCES, Checkpoint, detect

UP = "model.layers.0.mlp.up_proj"
RNG = np.random.default_rng(5)
WEIGHT = RNG.normal(size=(64, 96)).astype(ml_dtypes.float8_e4m3fn)
ROWS = RNG.uniform(0.01, 0.1, (64, 1)).astype(np.float32)
ONE = np.float32(0.02)


def made(home: Path, config: dict[str, Any], **tensors: Any) -> Checkpoint:
    save_file({f"{UP}.{k}": np.asarray(v) for k, v in tensors.items()}, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return Checkpoint.open(home)


QUARK = {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"}, "input_tensors": None}
PRODUCER = {"producer": {"name": "modelopt", "version": "0.23.0"}}
FP8 = {
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, ONE),
    "modelopt per channel": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, ROWS[:, 0]),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, ROWS),
    "quark": ({"quant_method": "quark", "global_quant_config": QUARK}, ROWS[:, 0]),
    "hf, a scale per row": ({"quant_method": "fp8"}, ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", FP8)
def test_float8(tmp_path: Path, name: str) -> None:
    settings, scale = FP8[name]
    ckpt = made(
        tmp_path, {"quantization_config": settings},
        weight=WEIGHT, weight_scale=scale, input_scale=np.float32(0.5),
    )  # fmt: skip
    source = detect(ckpt)
    assert source.name == "hf-fp8"
    source.check(ckpt, UP, (64, 96))
    q = source.read(ckpt, UP)
    assert isinstance(q, QTensor)
    rows = np.asarray(scale).reshape(-1, 1)
    assert np.array_equal(q.dequantize(), WEIGHT.astype(np.float32) * rows)
    assert q.block == ((64, 96) if rows.size == 1 else (1, 96))
    assert float(q.input_scale) == 0.5


def test_hf_quant_config_alone(tmp_path: Path) -> None:
    """ModelOpt's older files leave config.json as it was."""
    algo = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({**PRODUCER, "quantization": algo}))
    ckpt = made(tmp_path, {}, weight=WEIGHT, weight_scale=ONE, input_scale=ONE)
    assert ckpt.quantization["quant_algo"] == "FP8"
    assert detect(ckpt).name == "hf-fp8"


def test_settings_beside_the_weights(tmp_path: Path) -> None:
    """MODEL_DIR holds the float model's config, --source the quantized weights and their own."""
    (tmp_path / "float").mkdir()
    (tmp_path / "float" / "config.json").write_text('{"model_type": "llama"}')
    case = GOLDEN / "gptq/w4-g128-sym-v1"
    ckpt = Checkpoint.open(case / "model.safetensors", config_dir=tmp_path / "float")
    assert detect(ckpt).name == "gptq"
    whole, shapes = Checkpoint.open(case), shapes_of(case)
    assert outcome(ckpt, shapes, weights(whole, shapes)) == "same"


def test_awq_version_by_its_other_names() -> None:
    ckpt, shapes = Checkpoint.open(GOLDEN / "autoawq/w4-g32"), shapes_of(GOLDEN / "autoawq/w4-g32")
    settings = dict(ckpt.config["quantization_config"])
    word = settings.pop("version")
    for key in ("checkpoint_format", "format"):
        told = with_config(ckpt, {"quantization_config": {**settings, key: word.upper()}})
        assert outcome(told, shapes, weights(ckpt, shapes)) == "same"
    both = with_config(
        ckpt, {"quantization_config": {**settings, "format": "gemv", "version": word}}
    )
    assert "version gemm and gemv" in "".join(SOURCES["autoawq"].evidence(both).contradicts)


def test_awq_with_8_bits(tmp_path: Path) -> None:
    """vLLM's order of four bytes: channel 0, 2, 1, 3."""
    codes = RNG.integers(0, 256, (32, 64), np.uint8)
    zeros = RNG.integers(0, 256, (32, 2), np.uint8)
    scales = RNG.uniform(0.01, 0.1, (2, 32)).astype(np.float16)
    words = np.zeros((64, 8), np.uint32)
    for place, channel in enumerate((0, 2, 1, 3)):
        words |= codes.T[:, channel::4].astype(np.uint32) << np.uint32(8 * place)
    assert np.array_equal(pack(codes, AWQ8).words, words)
    tensors = {
        "qweight": words.view(np.int32), "qzeros": pack(zeros, AWQ8).words.view(np.int32),
        "scales": scales,
    }  # fmt: skip
    settings = {"quant_method": "awq", "bits": 8, "group_size": 32, "version": "gemm"}
    ckpt = made(tmp_path, {"quantization_config": settings}, **tensors)
    source = detect(ckpt)
    source.check(ckpt, UP, (32, 64))
    wide = [np.repeat(a, 32, axis=1).astype(np.float32) for a in (zeros, scales.T)]
    assert np.array_equal(source.read(ckpt, UP).dequantize(), (codes - wide[0]) * wide[1])
    assert not source.findings(ckpt)


OLD = GOLDEN / "compressed-tensors"


def test_zero_points_left_out_are_said() -> None:
    ckpt = Checkpoint.open(OLD / "old-int4-asym-zeros-left-out")
    (told,) = detect(ckpt).findings(ckpt)
    assert "2 asymmetric layers have no zero points" in told
    new = {**ckpt.config["quantization_config"], "version": "0.9.3"}
    with pytest.raises(SourceError, match="asymmetric weights without their zero points"):
        detect(ckpt).read(
            with_config(ckpt, {"quantization_config": new}), "model.layers.0.self_attn.q_proj"
        )


def test_zero_point_beyond_its_bits(tmp_path: Path) -> None:
    case = OLD / "old-int4-asym-g32"
    tensors = load_file(case / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight_zero_point"
    tensors[name] = np.full_like(tensors[name], 8)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((case / "config.json").read_bytes())
    ckpt = Checkpoint.open(tmp_path)
    with pytest.raises(SourceError, match=f"{name}: a zero point beyond 4 bits; found 8"):
        detect(ckpt).read(ckpt, name.rpartition(".")[0])


@pytest.mark.parametrize(
    "name",
    [
        "kv_scale",
        "k_proj.output_scale",
        "attn.prob_output_scale",
        "kv_cache_scaling_factor",
        "v_cache_scale",
    ],
)
def test_other_names_of_cache_scales_are_carried(tmp_path: Path, name: str) -> None:
    tensors = load_file(GOLDEN / "gptq/w4-g32-sym-v2/model.safetensors")
    tensors[f"model.layers.0.self_attn.{name}"] = np.ones(1, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    config = GOLDEN / "gptq/w4-g32-sym-v2/config.json"
    (tmp_path / "config.json").write_bytes(config.read_bytes())
    ckpt = Checkpoint.open(tmp_path)
    assert detect(ckpt).aside(ckpt) == (f"model.layers.0.self_attn.{name}",)
    assert "1 scales of the KV cache" in detect(ckpt).findings(ckpt)[0]

"""``auto`` on float8 checkpoints: the scheme that moves no weight and waits for no data."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from recognise_cases import GOLDEN, grown, write

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import Checkpoint, detect
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

STATIC = "hf-fp8/per-tensor-static"
CHANNELS = "compressed-tensors/float-fp8-dynamic-channel"
FUSED = "model.layers.0.self_attn.c_attn"  # qwen2's name
QKV = [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]


def model(case: str, home: Path, scales: bool = False, dynamic: bool = False) -> Path:
    """A golden as a model; with a weight scale for each layer, without activation scales."""
    tensors, config = opened(grown(GOLDEN / "sources" / case, home / "grown"))
    if dynamic:
        tensors = {n: t for n, t in tensors.items() if not n.endswith(("ion_scale", "input_scale"))}
        config["quantization_config"]["activation_scheme"] = "dynamic"
    for i, layer in enumerate(QKV if scales else []):
        name = next(n for n in tensors if n.startswith(f"{layer}.weight_scale"))
        tensors[name] = tensors[name] * np.asarray(1 + i, tensors[name].dtype)
    return write(home / "changed", tensors, config)


def opened(home: Path) -> tuple[dict[str, np.ndarray], dict]:
    ckpt = Checkpoint.open(home)
    config = json.loads((home / "config.json").read_text())
    return {name: np.array(ckpt.tensor(name)) for name in ckpt.names}, config


def stored(out: Path, scheme: str) -> np.ndarray:
    """The fused layer as the artifact holds it, float32."""
    cache = read_index(out)
    path = FUSED + "."
    params = {s: cache.array(path + s) for s in SCHEMES[scheme].params(8, 8)}
    return SCHEMES[scheme].decode(params).dequantize()


def exact(home: Path) -> np.ndarray:
    ckpt = Checkpoint.open(home)
    source = detect(ckpt)
    return np.concatenate([source.read(ckpt, layer).dequantize() for layer in QKV])


@pytest.mark.parametrize(
    ("case", "change", "scheme"),
    [
        (STATIC, {}, "e4m3_e4m3_f16"),  # its activation scales have a place there
        (STATIC, {"scales": True}, "fp8_e4m3fn_f16_row_scale"),
        (STATIC, {"dynamic": True}, "fp8_e4m3fn_f16_row_scale"),
        (CHANNELS, {}, "fp8_e4m3fn_f16_row_scale"),
    ],
)
def test_no_weight_moves(case: str, change: dict, scheme: str, tmp_path: Path) -> None:
    home = model(case, tmp_path / "model", **change)
    report = convert_weight(ConvertJob(home, tmp_path / "out"))
    assert report.quantization == scheme
    assert not report.requantized
    assert np.array_equal(stored(tmp_path / "out", scheme), exact(home))


def test_small_codes_do_not_land_in_an_integer_scheme(tmp_path: Path) -> None:
    """Scale 1 and codes within +-128, which a cast to integers would take."""
    home = model(CHANNELS, tmp_path / "model")
    tensors, config = opened(home)
    for name, value in tensors.items():
        if name.endswith("weight_scale"):
            tensors[name] = np.ones_like(value)
        elif value.dtype == ml_dtypes.float8_e4m3fn:
            small = np.clip(value.astype(np.float32) / 8, -8, 8)
            tensors[name] = small.astype(value.dtype)
    home = write(tmp_path / "small", tensors, config)
    report = convert_weight(ConvertJob(home, tmp_path / "out"))
    assert report.quantization == "fp8_e4m3fn_f16_row_scale"
    assert np.array_equal(stored(tmp_path / "out", report.quantization), exact(home))

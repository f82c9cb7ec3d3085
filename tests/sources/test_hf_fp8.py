"""Hugging Face fp8 beyond the goldens: LLMC's names, scale shapes, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import SOURCES, Checkpoint, detect

FP8 = SOURCES["hf-fp8"]
L = "model.layers.0.mlp.up_proj"
RNG = np.random.default_rng(2)
WEIGHT = RNG.normal(size=(192, 160)).astype(ml_dtypes.float8_e4m3fn)


def made(tmp_path: Path, settings: dict[str, Any], **tensors: np.ndarray) -> Checkpoint:
    parts = {"weight": WEIGHT, **tensors}
    save_file({f"{L}.{k}": np.asarray(v) for k, v in parts.items()}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", **settings}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(tmp_path)


def test_llmc_static(tmp_path: Path) -> None:
    """LLMC names the scales as vLLM does, and nests its list of ignored layers."""
    ckpt = made(
        tmp_path,
        {"activation_scheme": "static", "ignored_layers": [["lm_head"]]},
        weight_scale=np.array([0.5], np.float32),
        input_scale=np.array([0.25], np.float32),
    )
    assert detect(ckpt).name == "hf-fp8"
    FP8.check(ckpt, L, (192, 160))
    q = FP8.read(ckpt, L)
    assert (q.block, float(q.input_scale)) == ((192, 160), 0.25)
    assert np.array_equal(q.dequantize(), WEIGHT.astype(np.float32) * 0.5)
    assert set(FP8.parts(ckpt, L)) == {
        f"{L}.{x}" for x in ("weight", "weight_scale", "input_scale")
    }


@pytest.mark.parametrize("shape", [(192, 1), (), (1,), (2, 3)])
def test_scale_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    scale = RNG.uniform(0.1, 1, shape).astype(np.float32)
    blocks = {"weight_block_size": [128, 64]} if shape == (2, 3) else {}
    ckpt = made(tmp_path, blocks, weight_scale_inv=np.asarray(scale))
    FP8.check(ckpt, L, (192, 160))
    wide = scale.reshape(1, 1) if scale.size == 1 else scale
    if shape == (2, 3):
        wide = np.repeat(np.repeat(scale, 128, axis=0), 64, axis=1)[:192, :160]
    assert np.array_equal(FP8.read(ckpt, L).dequantize(), WEIGHT.astype(np.float32) * wide)


ONE = np.ones((), np.float32)
BLOCKS = {"weight_block_size": [128, 128]}
BAD = {
    "no scale": ({}, {}, "weight_scale_inv: the checkpoint lacks"),
    "grid and no blocks": (
        {"weight_block_size": None}, {"weight_scale_inv": np.ones((2, 2), np.float32)}, "no block"),
    "grid of no block": ({}, {"weight_scale_inv": np.ones((5, 2), np.float32)}, "no block"),
    "block of 96": (
        {"weight_block_size": [96, 128]}, {"weight_scale_inv": np.ones((2, 2), np.float32)},
        "power of two"),
    "grid of others": (BLOCKS, {"weight_scale_inv": np.ones((3, 2), np.float32)}, "wrong shape"),
    "block of zero": (
        {"weight_block_size": [0, 128]}, {"weight_scale_inv": np.ones((2, 2), np.float32)},
        "no block size"),
    "integers": ({}, {"weight_scale_inv": np.ones((), np.int32)}, "wrong dtype"),
    "nan": ({}, {"weight_scale_inv": ONE * np.nan}, "scales cannot be used"),
    "zero": ({}, {"weight_scale_inv": ONE * 0}, "scales cannot be used"),
    "input per channel": (
        {}, {"weight_scale_inv": ONE, "input_scale": np.ones(160, np.float32)}, "not one scale"),
    "input infinite": ({}, {"weight_scale_inv": ONE, "input_scale": ONE * np.inf}, "cannot be"),
    "not a matrix": ({}, {"weight": WEIGHT[0], "weight_scale_inv": ONE}, "not a matrix"),
    "integer weight": ({}, {"weight": WEIGHT.view(np.int8), "weight_scale_inv": ONE}, "dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_the_tensor(tmp_path: Path, case: str) -> None:
    settings, tensors, message = BAD[case]
    with pytest.raises(SourceError, match=message) as error:
        FP8.read(made(tmp_path, settings, **tensors), L)
    assert L in str(error.value)

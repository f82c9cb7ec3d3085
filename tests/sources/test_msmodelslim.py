"""msModelSlim beyond the goldens: older shapes, refused types, biases, scales aside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import SOURCES, Checkpoint, detect

GOLDEN = Path(__file__).parents[1] / "golden" / "sources" / "msmodelslim"
Q = "model.layers.0.self_attn.q_proj"
SLIM = SOURCES["msmodelslim"]


def edited(
    tmp_path: Path,
    case: str,
    tensors: dict[str, Any] | None = None,
    types: dict[str, Any] | None = None,
) -> Checkpoint:
    """A copy of a golden case with tensors and description entries changed (None: removed)."""
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / case, home, ignore=shutil.ignore_patterns("expected*", "*.index.json"))
    weights = next(home.glob("*.safetensors"))
    arrays = {**load_file(weights), **(tensors or {})}
    save_file({k: v for k, v in arrays.items() if v is not None}, weights)
    described = home / "quant_model_description.json"
    merged = {**json.loads(described.read_text()), **(types or {})}
    described.write_text(json.dumps({k: v for k, v in merged.items() if v is not None}))
    return Checkpoint.open(home)


def expected(case: str) -> dict[str, np.ndarray]:
    return load_file(GOLDEN / case / "expected.safetensors")


@pytest.mark.parametrize("kind", ["W8A8SC", "NF4", "W8A8_MXFP8", "W4A4_MXFP4", "W4A4_DYNAMIC", "X"])
def test_refused_by_name(tmp_path: Path, kind: str) -> None:
    ckpt = edited(tmp_path, "w8a16-channel", types={f"{Q}.weight": kind, "model_quant_type": kind})
    assert detect(ckpt).name == "msmodelslim"
    with pytest.raises(SourceError, match=rf"{Q}\.weight: .*type {kind} cannot be read") as error:
        SLIM.check(ckpt, Q, (64, 256))
    assert "W8A16" in str(error.value)


def test_older_description_name(tmp_path: Path) -> None:
    ckpt = edited(tmp_path, "w8a16-channel")
    old = ckpt.path / "quant_model_description_w8a16.json"
    (ckpt.path / "quant_model_description.json").rename(old)
    assert detect(Checkpoint.open(ckpt.path)).name == "msmodelslim"


def test_vectors_of_version_0(tmp_path: Path) -> None:
    """Version 0 writes scales [n] as well as [n, 1], and may leave symmetric offsets out."""
    case = "w8a16-channel"
    scale = load_file(next((GOLDEN / case).glob("quant*.safetensors")))[f"{Q}.weight_scale"]
    changed = {f"{Q}.weight_scale": scale.reshape(-1), f"{Q}.weight_offset": None}
    ckpt = edited(tmp_path, case, changed, {f"{Q}.weight_offset": None})
    SLIM.check(ckpt, Q, (64, 256))
    assert np.array_equal(SLIM.read(ckpt, Q).dequantize(), expected(case)[f"{Q}.weight"])


@pytest.mark.parametrize("case", ["v0-w4a16-g64-packed", "v0-w4a16-channel-packed"])
def test_unpacked_4_bit_of_version_0(tmp_path: Path, case: str) -> None:
    codes = expected(case)[f"{Q}.codes"]
    ckpt = edited(tmp_path, case, {f"{Q}.weight": codes}, {"version": None, "group_size": None})
    q = SLIM.read(ckpt, Q)
    assert np.array_equal(q.codes.unpack(), codes.astype(int) + 8)
    assert np.allclose(q.dequantize(), expected(case)[f"{Q}.weight"], rtol=1e-6)


def test_bias_recovered_from_quant_bias(tmp_path: Path) -> None:
    """Without a bias of its own, the layer's bias is what quant_bias holds beside the offset."""
    case = "w8a8-static-fp16"
    ckpt = edited(tmp_path, case, {f"{Q}.bias": None})
    bias = SLIM.bias(ckpt, Q)
    assert bias is not None
    step = expected(case)[f"{Q}.weight"].std() * 0.05
    assert np.abs(bias - expected(case)[f"{Q}.bias"]).max() < step
    assert SLIM.bias(ckpt, "model.layers.0.mlp.down_proj") is None


def test_input_scale_only_without_offset(tmp_path: Path) -> None:
    case = "w8a8-static-fp16"
    assert SLIM.read(Checkpoint.open(GOLDEN / case), Q).input_scale is None
    ckpt = edited(tmp_path, case, {f"{Q}.input_offset": np.zeros(1, np.float32)})
    assert SLIM.read(ckpt, Q).input_scale is not None


def test_cache_scales_are_aside_and_said(tmp_path: Path) -> None:
    names = [f"model.layers.0.self_attn.k_proj.kv_cache_{x}" for x in ("scale", "offset")]
    ckpt = edited(tmp_path, "w8a16-channel", {n: np.ones(8, np.float32) for n in names})
    assert set(SLIM.aside(ckpt)) == set(names)
    (finding,) = SLIM.findings(ckpt)
    assert "2 scales of the KV cache" in finding
    assert SLIM.findings(Checkpoint.open(GOLDEN / "w8a16-channel")) == ()


BAD = {
    "no type": ({}, {f"{Q}.weight": None}, "type None cannot be read"),
    "scale missing": ({f"{Q}.weight_scale": None}, {}, "weight_scale: the checkpoint lacks"),
    "scale of ints": ({f"{Q}.weight_scale": np.ones((64, 1), np.int32)}, {}, "wrong dtype"),
    "rows": ({f"{Q}.weight_scale": np.ones((32, 1), np.float32)}, {}, "weight: wrong shape"),
    "groups": ({f"{Q}.weight_scale": np.ones((64, 3), np.float32)}, {}, "weight: wrong shape"),
    "offset shape": ({f"{Q}.weight_offset": np.zeros((64, 2), np.float32)}, {}, "wrong shape"),
    "half offset": (
        {f"{Q}.weight_offset": np.full((64, 1), 0.5, np.float32)}, {}, "no whole number"),
    "large offset": (
        {f"{Q}.weight_offset": np.full((64, 1), 200, np.float32)}, {}, "no whole number"),
    "nan scale": ({f"{Q}.weight_scale": np.full((64, 1), np.nan, np.float32)}, {}, "scales cannot"),
    "float weight": ({f"{Q}.weight": np.ones((64, 256), np.int32)}, {}, "weight: wrong dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_the_tensor(tmp_path: Path, case: str) -> None:
    tensors, types, message = BAD[case]
    ckpt = edited(tmp_path, "w8a16-channel", tensors, types)
    with pytest.raises(SourceError, match=message) as error:
        SLIM.read(ckpt, Q)
    assert Q in str(error.value)


def test_shape_unlike_the_config() -> None:
    with pytest.raises(SourceError, match=r"wrong shape; found a weight \[64, 256\]"):
        SLIM.check(Checkpoint.open(GOLDEN / "w4a8-dynamic"), Q, (64, 128))

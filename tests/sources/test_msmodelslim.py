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
from mlc_bridge.qtensor import QTensor
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


def test_input_scale_and_offset(tmp_path: Path) -> None:
    case = "w8a8-static-fp16"
    q = SLIM.read(Checkpoint.open(GOLDEN / case), Q)
    assert q.input_scale is not None
    assert q.input_zero == 4
    ckpt = edited(tmp_path, case, {f"{Q}.input_offset": np.zeros(1, np.float32)})
    assert SLIM.read(ckpt, Q).input_zero is None
    ckpt = edited(tmp_path / "half", case, {f"{Q}.input_offset": np.full(1, 0.5, np.float32)})
    with pytest.raises(SourceError, match="not one whole number of 8 bits"):
        SLIM.read(ckpt, Q)


def test_cache_scales_are_aside_and_said(tmp_path: Path) -> None:
    names = [f"model.layers.0.self_attn.k_proj.kv_cache_{x}" for x in ("scale", "offset")]
    ckpt = edited(tmp_path, "w8a16-channel", {n: np.ones(8, np.float32) for n in names})
    assert set(SLIM.aside(ckpt)) == set(names)
    (finding,) = SLIM.findings(ckpt)
    assert "2 scales of the KV cache" in finding
    assert SLIM.findings(Checkpoint.open(GOLDEN / "w8a16-channel")) == ()


def real(case: str) -> Checkpoint:
    return Checkpoint.open(GOLDEN / f"real-{case}")


def test_nf4_of_the_real_tool_is_refused_for_what_it_lacks() -> None:
    ckpt = real("nf4")
    assert detect(ckpt).name == "msmodelslim"
    with pytest.raises(SourceError, match=r"type NF4 cannot be read.*scale of each block was not"):
        SLIM.check(ckpt, Q, (64, 64))
    assert not [name for name in ckpt.names if "absmax" in name or "scale" in name]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("w8a8", ("static activation scales",)),
        ("w8a8-dynamic", ("activations quantized at run time (W8A8_DYNAMIC)",)),
        ("w8a8-kv8", ("4 scales of the KV cache", "static activation scales")),
        ("w8a8-fa", ("6 scales of the KV cache", "static activation scales")),
        ("w8a8-tp2", ("static activation scales", "2 layers were quantized in slices")),
        ("mixed-types", ("static activation scales", "3 layers ask for activations")),
        ("w8a16", ()),
    ],
)
def test_what_is_not_done_is_said(case: str, told: tuple[str, ...]) -> None:
    findings = SLIM.findings(real(case))
    assert len(findings) == len(told)
    assert all(words in finding for words, finding in zip(told, findings, strict=True))


@pytest.mark.parametrize(
    ("case", "floats"),
    [("gate", {"o_proj", "gate_proj", "down_proj"}),
     ("q-k", {"q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})],
)  # fmt: skip
def test_fallback_leaves_parts_of_a_fused_layer_float(case: str, floats: set[str]) -> None:
    ckpt = real(f"w8a8-fallback-{case}")
    layers = [x for x in ckpt.layers("weight") if x.endswith("_proj")]
    assert {x.rpartition(".")[2] for x in layers if not isinstance(SLIM.read(ckpt, x), QTensor)} \
        == floats  # fmt: skip
    assert floats.isdisjoint(x.rpartition(".")[2] for x in SLIM.layers(ckpt))


def test_slices_are_joined_and_held_against_the_whole(tmp_path: Path) -> None:
    """Slices of a float layer have no whole beside them; those of a quantized one do."""
    o_proj = "model.layers.0.self_attn.o_proj"
    ckpt = real("w8a8-tp2-fallback")
    assert f"{o_proj}.weight" not in ckpt
    assert SLIM.read(ckpt, o_proj).dtype == np.float32
    SLIM.check(ckpt, o_proj, (32, 32))
    ckpt = real("w8a8-tp2")
    assert SLIM.read(ckpt, o_proj).block == (1, 32)
    other = {f"{o_proj}.weight": ckpt.tensor(f"{o_proj}.weight") + np.int8(1)}
    with pytest.raises(SourceError, match=rf"{o_proj}\.weight: .*differs from its slices"):
        SLIM.read(edited(tmp_path, "real-w8a8-tp2", other), o_proj)


def test_norms_stored_twice_are_copies() -> None:
    ckpt = real("w8a8-m1-safe-tensor")
    copies = SLIM.copies(ckpt)
    assert len(copies) == 3
    assert all(np.array_equal(ckpt.tensor(a), ckpt.tensor(b)) for a, b in copies.items())
    assert not SLIM.copies(real("w8a8-m1"))


@pytest.mark.parametrize("suffix", ["heads_rotation", "div.mul_scale", "svd_lowrank_l1"])
def test_what_acts_at_run_time_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    name = f"{Q}.{suffix}"
    ckpt = edited(tmp_path, "w8a16-channel", {name: np.ones(4, np.float32)})
    with pytest.raises(SourceError, match=rf"{Q}\.{suffix}: this msModelSlim model computes with"):
        SLIM.check_whole(ckpt)


def test_float8_with_an_offset_is_refused(tmp_path: Path) -> None:
    case = "real-v1-wfp8afp8-dynamic"
    sound = real("v1-wfp8afp8-dynamic")
    file = next((GOLDEN / case).glob("quant*.safetensors"))
    assert SLIM.read(sound, Q).zero is None
    changed = bytearray(file.read_bytes())
    entry = sound.entries[f"{Q}.weight_offset"]
    changed[entry.begin : entry.begin + 4] = np.float32(1).tobytes()
    home = tmp_path / case
    shutil.copytree(GOLDEN / case, home)
    (home / file.name).write_bytes(changed)
    with pytest.raises(SourceError, match=rf"{Q}\.weight_offset: an offset is not zero"):
        SLIM.read(Checkpoint.open(home), Q)


BAD = {
    "no type": ({}, {f"{Q}.weight": None}, "type None cannot be read"),
    "scale missing": ({f"{Q}.weight_scale": None}, {}, "weight_scale: the checkpoint lacks"),
    "scale of ints": ({f"{Q}.weight_scale": np.ones((64, 1), np.int32)}, {}, "wrong dtype"),
    "rows": ({f"{Q}.weight_scale": np.ones((32, 1), np.float32)}, {}, "weight: wrong shape"),
    "groups": ({f"{Q}.weight_scale": np.ones((64, 3), np.float32)}, {}, "weight: wrong shape"),
    "offset shape": ({f"{Q}.weight_offset": np.zeros((64, 2), np.float32)}, {}, "wrong shape"),
    "half offset": (
        {f"{Q}.weight_offset": np.full((64, 1), 0.5, np.float32)}, {}, "no whole number"),
    "other type": ({}, {f"{Q}.weight_scale": "W8A8"}, "parts of one layer different types"),
    "offset lost": ({f"{Q}.weight_offset": None}, {}, "weight_offset: the checkpoint lacks"),
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

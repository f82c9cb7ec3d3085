"""compressed-tensors beyond the goldens: config groups, what LLMC leaves out, refusals."""

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

GOLDEN = Path(__file__).parents[1] / "golden" / "sources" / "compressed-tensors"
Q = "model.layers.0.self_attn.q_proj"
CT = SOURCES["compressed-tensors"]


def edited(
    tmp_path: Path, case: str, change: Any = None, tensors: dict[str, Any] | None = None
) -> Checkpoint:
    """A copy of a golden case; ``change`` edits its settings in place, None removes a tensor."""
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / case, home, ignore=shutil.ignore_patterns("expected*"))
    config = json.loads((home / "config.json").read_text())
    if change is not None:
        change(config["quantization_config"])
    (home / "config.json").write_text(json.dumps(config))
    arrays = {**load_file(home / "model.safetensors"), **(tensors or {})}
    save_file({k: v for k, v in arrays.items() if v is not None}, home / "model.safetensors")
    return Checkpoint.open(home)


def group(settings: dict[str, Any]) -> dict[str, Any]:
    return settings["config_groups"]["group_0"]


def add_groups(settings: dict[str, Any], *more: tuple[list[str], dict[str, Any]]) -> None:
    for number, (targets, weights) in enumerate(more):
        merged = {**group(settings)["weights"], **weights}
        settings["config_groups"][f"other_{number}"] = {"targets": targets, "weights": merged}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (["Linear"], ["re:.*k_proj"]),
        (["re:.*q_proj"], ["Linear"]),
        ([Q], ["re:.*q_proj"]),
        (["self_attn.q_proj"], ["Linear"]),
        (["re:.*mlp.*", "re:.*self_attn.*"], ["Linear"]),
        (["Linear"], ["Embedding"]),
    ],
)
@pytest.mark.parametrize("right_first", [True, False])
def test_group_by_name_then_pattern_then_class(
    tmp_path: Path, right: list[str], wrong: list[str], right_first: bool
) -> None:
    def change(settings: dict[str, Any]) -> None:
        groups = [(right, {}), (wrong, {"group_size": 64})]
        add_groups(settings, *(groups if right_first else groups[::-1]))
        del settings["config_groups"]["group_0"]

    ckpt = edited(tmp_path, "pack-int4-sym-g32", change)
    assert CT.read(ckpt, Q).block == (1, 32)


def test_llmc_export(tmp_path: Path) -> None:
    """LLMC's key for the settings, and no weight_shape."""
    ckpt = edited(tmp_path, "pack-int4-sym-g128", None, {f"{Q}.weight_shape": None})
    config = json.loads((ckpt.path / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (ckpt.path / "config.json").write_text(json.dumps(config))
    ckpt = Checkpoint.open(ckpt.path)
    assert detect(ckpt).name == "compressed-tensors"
    expected = load_file(GOLDEN / "pack-int4-sym-g128" / "expected.safetensors")
    codes = CT.read(ckpt, Q).codes.unpack()
    assert np.array_equal(codes, expected[f"{Q}.codes"].astype(int) + 8)


def test_llmc_per_tensor_scale_and_defaults(tmp_path: Path) -> None:
    """A whole tensor's scale has shape [1]; keys that the config leaves out take the defaults."""

    def change(settings: dict[str, Any]) -> None:
        group(settings)["weights"] = {"num_bits": 8, "strategy": "tensor"}

    scale = np.array([0.5], np.float16)
    ckpt = edited(tmp_path, "int-w8a8-static", change, {f"{Q}.weight_scale": scale})
    q = CT.read(ckpt, Q)
    assert q.block == (64, 256)
    weight = load_file(ckpt.path / "model.safetensors")[f"{Q}.weight"]
    assert np.array_equal(q.dequantize(), weight * np.float32(0.5))


def test_int8_groups_and_zero_points(tmp_path: Path) -> None:
    def change(settings: dict[str, Any]) -> None:
        group(settings)["weights"] = {
            "num_bits": 8, "strategy": "group", "group_size": 64, "symmetric": False,
        }  # fmt: skip

    rng = np.random.default_rng(3)
    scale = rng.uniform(0.1, 1, (64, 4)).astype(np.float16)
    zero = rng.integers(-128, 128, (64, 4)).astype(np.int8)
    tensors = {f"{Q}.weight_scale": scale, f"{Q}.weight_zero_point": zero}
    ckpt = edited(tmp_path, "int-w8a8-static", change, tensors)
    weight = load_file(ckpt.path / "model.safetensors")[f"{Q}.weight"].astype(np.float32)
    wide = [np.repeat(a.astype(np.float32), 64, axis=1) for a in (scale, zero)]
    assert np.array_equal(CT.read(ckpt, Q).dequantize(), (weight - wide[1]) * wide[0])


def test_static_zero_points_are_said() -> None:
    (finding,) = CT.findings(Checkpoint.open(GOLDEN / "int-w8a8-static-asym"))
    assert "1 layers have static activation scales with zero points" in finding
    assert CT.findings(Checkpoint.open(GOLDEN / "int-w8a8-static")) == ()


def test_static_scales() -> None:
    """With the zero point where there is one."""
    for case, zero in (("int-w8a8-static", None), ("int-w8a8-static-asym", -16)):
        q = CT.read(Checkpoint.open(GOLDEN / case), Q)
        assert q.input_scale is not None
        assert q.input_zero == zero
    q = CT.read(Checkpoint.open(GOLDEN / "float-fp8-static-tensor"), Q)
    assert q.input_scale is not None
    assert q.input_scale.dtype == np.float32
    assert q.input_scale.shape == ()


def test_unset_g_idx_means_no_order(tmp_path: Path) -> None:
    ckpt = edited(
        tmp_path, "pack-int4-sym-g32", None, {f"{Q}.weight_g_idx": np.full(256, -1, np.int32)}
    )
    assert CT.read(ckpt, Q).perm is None


def test_ignored_layer_is_float(tmp_path: Path) -> None:
    weight = np.ones((8, 16), np.float32)
    ckpt = edited(tmp_path, "pack-int4-sym-g32", None, {"lm_head.weight": weight})
    assert np.array_equal(CT.read(ckpt, "lm_head"), weight)
    assert CT.layers(ckpt) == (Q,)


def set_weights(**values: Any) -> Any:
    return lambda settings: group(settings)["weights"].update(values)


ROTATION = {"config_groups": {"u": {"apply": [{"location": "input", "targets": ["Linear"]}]}}}
BAD = {
    "no group": (lambda s: group(s).update(targets=["re:.*k_proj"]), {}, "no config group"),
    "broken pattern": (lambda s: group(s).update(targets=["re:("]), {}, "no regular expression"),
    "sparse": (lambda s: s.update(sparsity_config={"format": "sparse-24"}), {}, "sparse weights"),
    "rotation": (lambda s: s.update(transform_config=ROTATION), {}, "at run time"),
    "nvfp4": (lambda s: group(s).update(format="nvfp4-pack-quantized"), {}, "'nvfp4-pack-quant"),
    "type": (set_weights(type="float"), {}, "codes in int32 and type 'float'"),
    "bits 3": (set_weights(num_bits=3), {}, "num_bits 3"),
    "group 48": (set_weights(group_size=48), {}, "blocks do not fit"),
    "group 64": (set_weights(group_size=64), {}, r"weight_scale: wrong shape; found \(64, 8\)"),
    "strategy": (set_weights(strategy="attn_head"), {}, "blocks do not fit"),
    "zero points missing": (set_weights(symmetric=False), {}, "without their zero points"),
    "shape lies": (None, {f"{Q}.weight_shape": np.array([64, 512])}, "weight_packed: wrong shape"),
    "shape negative": (None, {f"{Q}.weight_shape": np.array([-64, -256])}, "wrong shape"),
    "scale missing": (None, {f"{Q}.weight_scale": None}, "lacks this tensor"),
    "g_idx uneven": (None, {f"{Q}.weight_g_idx": np.zeros(256, np.int32)}, "32 columns each"),
    "g_idx short": (None, {f"{Q}.weight_g_idx": np.zeros(8, np.int32)}, "weight_g_idx: wrong"),
    "words of bytes": (None, {f"{Q}.weight_packed": np.zeros((64, 32), np.int8)}, "wrong dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_the_tensor(tmp_path: Path, case: str) -> None:
    change, tensors, message = BAD[case]
    ckpt = edited(tmp_path, "pack-int4-sym-g32", change, tensors)
    with pytest.raises(SourceError, match=message):
        CT.read(ckpt, Q)


@pytest.mark.parametrize("case", ["pack-int4-sym-g32", "int-w8a8-static"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_scales_that_cannot_be(tmp_path: Path, case: str, value: float) -> None:
    scale = load_file(GOLDEN / case / "model.safetensors")[f"{Q}.weight_scale"].copy()
    scale[5, 0] = value
    ckpt = edited(tmp_path, case, None, {f"{Q}.weight_scale": scale})
    with pytest.raises(SourceError, match=rf"{Q}\.weight_scale: 1 of"):
        CT.read(ckpt, Q)


def test_cache_scales_are_aside_and_said(tmp_path: Path) -> None:
    names = [f"model.layers.0.self_attn.{x}_scale" for x in "kv"]
    one = np.ones(1, np.float16)
    ckpt = edited(tmp_path, "int-w8a8-static", None, dict.fromkeys(names, one))
    assert set(CT.aside(ckpt)) == set(names)
    assert "2 scales of the KV cache" in CT.findings(ckpt)[0]
    assert CT.layers(ckpt) == (Q,)

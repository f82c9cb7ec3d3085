"""GPTQ beyond the goldens: overrides, other words, missing g_idx, activation order, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge.errors import SourceError, UnknownFormat
from mlc_bridge.sources import SOURCES, Checkpoint, detect

GOLDEN = Path(__file__).parents[1] / "golden" / "sources" / "gptq"
Q = "model.layers.0.self_attn.q_proj"
CASE = "w4-g32-sym-v2"
GPTQ = SOURCES["gptq"]


def edited(
    tmp_path: Path,
    case: str = CASE,
    settings: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
) -> Checkpoint:
    """A copy of a golden case with settings and tensors changed (None: removed)."""
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / case, home, ignore=shutil.ignore_patterns("expected*"))
    config = json.loads((home / "config.json").read_text())
    config["quantization_config"] |= settings or {}
    (home / "config.json").write_text(json.dumps(config))
    arrays = {**load_file(home / "model.safetensors"), **(tensors or {})}
    save_file({k: v for k, v in arrays.items() if v is not None}, home / "model.safetensors")
    return Checkpoint.open(home)


def weight(case: str) -> np.ndarray:
    return load_file(GOLDEN / case / "expected.safetensors")[f"{Q}.weight"]


@pytest.mark.parametrize("case", [CASE, "w4-channel-sym-v1", "w8-g128-sym-v1"])
def test_without_g_idx_groups_lie_in_order(tmp_path: Path, case: str) -> None:
    ckpt = edited(tmp_path, case, tensors={f"{Q}.g_idx": None})
    GPTQ.check(ckpt, Q, (64, 256))
    q = GPTQ.read(ckpt, Q)
    assert q.perm is None
    assert np.allclose(q.dequantize(), weight(case), rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize("case", ["w4-g32-sym-v1-desc-act", "w4-g64-asym-v2-desc-act"])
def test_activation_order_is_kept(case: str) -> None:
    """Stored column j is input column perm[j]; the groups then lie side by side."""
    ckpt = Checkpoint.open(GOLDEN / case)
    q, g_idx = GPTQ.read(ckpt, Q), ckpt.tensor(f"{Q}.g_idx")
    assert sorted(q.perm) == list(range(256))
    assert np.array_equal(g_idx[q.perm], np.arange(256) // q.block[1])


@pytest.mark.parametrize("itemsize", [1, 2, 8])
@pytest.mark.parametrize("case", ["w4-g64-asym-v1", "w8-g128-sym-v1"])
def test_other_pack_dtypes(tmp_path: Path, case: str, itemsize: int) -> None:
    """pack_dtype int8, int16, int64: the same bits along k (qweight) and along n (qzeros)."""
    arrays = load_file(GOLDEN / case / "model.safetensors")
    kind = np.dtype(f"int{8 * itemsize}")
    rows = np.ascontiguousarray(arrays[f"{Q}.qweight"].T).view(kind)
    zeros = arrays[f"{Q}.qzeros"].view(kind)
    if case.endswith("v1") and itemsize != 4:  # the 1 was taken from words of another width
        whole = arrays[f"{Q}.qzeros"].view(np.uint32)
        bits = 0x11111111 if case.startswith("w4") else 0x01010101
        true = (whole + np.uint32(bits)).view(f"uint{8 * itemsize}")
        ones = int.from_bytes(bits.to_bytes(4, "little") * 2, "little") & ((1 << 8 * itemsize) - 1)
        zeros = (true - true.dtype.type(ones)).view(kind)
    tensors = {f"{Q}.qweight": np.ascontiguousarray(rows.T), f"{Q}.qzeros": zeros}
    ckpt = edited(tmp_path, case, {"pack_dtype": str(kind)}, tensors)
    GPTQ.check(ckpt, Q, (64, 256))
    assert np.allclose(GPTQ.read(ckpt, Q).dequantize(), weight(case), rtol=2**-11, atol=1e-7)


def test_settings_in_quantize_config_json(tmp_path: Path) -> None:
    """AutoGPTQ: no quantization_config, no quant_method, only quantize_config.json."""
    ckpt = edited(tmp_path)
    (ckpt.path / "config.json").write_text('{"model_type": "llama"}')
    plain = {"bits": 4, "group_size": 32, "desc_act": False, "checkpoint_format": "gptq_v2"}
    (ckpt.path / "quantize_config.json").write_text(json.dumps(plain))
    ckpt = Checkpoint.open(ckpt.path)
    assert detect(ckpt).name == "gptq"
    assert np.allclose(GPTQ.read(ckpt, Q).dequantize(), weight(CASE), rtol=2**-11, atol=1e-7)


def test_dynamic_overrides(tmp_path: Path) -> None:
    """The first pattern that matches the name wins; "-:" leaves a layer float, as its file says."""
    dynamic = {
        r"-:lm_head": {},
        r"+:.*\.k_proj": {"group_size": 64},
        r".*\.layers\.0\..*": {"group_size": 32, "bits": 4},
        r".*q_proj": {"group_size": 128},
    }
    head = np.ones((8, 16), np.float16)
    wrong = {"bits": 8, "group_size": 128, "dynamic": dynamic}
    ckpt = edited(tmp_path, CASE, wrong, {"lm_head.weight": head})
    assert GPTQ.read(ckpt, Q).block == (1, 32)
    assert np.array_equal(GPTQ.read(ckpt, "lm_head"), head)
    GPTQ.check(ckpt, "lm_head", (8, 16))


@pytest.mark.parametrize("form", ["marlin", "gptq_p", "bitblas"])
def test_other_formats_are_named(tmp_path: Path, form: str) -> None:
    ckpt = edited(tmp_path, CASE, {"checkpoint_format": form, "format": form})
    with pytest.raises(UnknownFormat, match=r"this is GPTQ in .*: not supported"):
        detect(ckpt)


uneven = np.zeros(256, np.int32)
BAD = {
    "bits 3": ({"bits": 3}, {}, "3-bit codes straddle words"),
    "bits 8 of 4": ({"bits": 8}, {}, "bits 8 .* and 8 words for 64 zero points"),
    "group 64 of 32": ({"group_size": 64}, {}, "group_size 64 .* and 8 groups"),
    "group text": ({"group_size": "32"}, {}, "group_size '32' .* and 8 groups"),
    "group 0": ({"group_size": 0}, {}, "group_size 0 .* and 8 groups"),
    "pattern": ({"dynamic": {"(": {"bits": 4}}}, {}, "no regular expression"),
    "scales missing": ({}, {f"{Q}.scales": None}, "scales: the checkpoint lacks"),
    "qzeros missing": ({}, {f"{Q}.qzeros": None}, "qzeros: the checkpoint lacks"),
    "qzeros short": ({}, {f"{Q}.qzeros": np.ones((8, 4), np.int32)}, "4 words for 64 zero points"),
    "qweight floats": ({}, {f"{Q}.qweight": np.ones((32, 64), np.float32)}, "wrong dtype"),
    "g_idx short": ({}, {f"{Q}.g_idx": np.zeros(8, np.int32)}, "g_idx: wrong shape"),
    "g_idx uneven": ({}, {f"{Q}.g_idx": uneven}, "do not have 32 columns each"),
    "g_idx negative": ({}, {f"{Q}.g_idx": uneven - 1}, "do not have 32 columns each"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_the_tensor(tmp_path: Path, case: str) -> None:
    settings, tensors, message = BAD[case]
    ckpt = edited(tmp_path, CASE, settings, tensors)
    with pytest.raises(SourceError, match=message):
        GPTQ.read(ckpt, Q)


def test_shape_unlike_the_config() -> None:
    for shape in ((64, 512), (128, 256)):
        with pytest.raises(SourceError, match="qweight: wrong shape"):
            GPTQ.check(Checkpoint.open(GOLDEN / CASE), Q, shape)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_cannot_be(tmp_path: Path, value: float) -> None:
    scales = load_file(GOLDEN / CASE / "model.safetensors")[f"{Q}.scales"].copy()
    scales[1, 2] = value
    with pytest.raises(SourceError, match=rf"{Q}\.scales: 1 of .* at \[1, 2\]"):
        GPTQ.read(edited(tmp_path, CASE, tensors={f"{Q}.scales": scales}), Q)


def test_scales_that_rounded_to_zero_are_read(tmp_path: Path) -> None:
    """The tool writes float16 scales of nearly dead channels; their weights are then zero."""
    scales = load_file(GOLDEN / CASE / "model.safetensors")[f"{Q}.scales"].copy()
    scales[:, 2] = 0
    ckpt = edited(tmp_path, CASE, tensors={f"{Q}.scales": scales})
    assert not GPTQ.read(ckpt, Q).dequantize()[2].any()

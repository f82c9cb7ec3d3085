"""The stage: what is written is what was rounded, goes on after a kill, and refuses in words."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_bridge.errors import ArtifactError, BridgeError
from mlc_bridge.quantizers import loop, tensor_file
from mlc_bridge.sources import SOURCES, Checkpoint
from mlc_bridge.stages.quantize import QuantizeJob, QuantizeReport, quantize
from mlc_bridge.stages.recognise import recognise
from tests.quantizers.tiny import checkpoint, weights

LAYER = "model.layers.1.mlp.down_proj"


def rounded(w: Any, bits: int, group: int, symmetric: bool) -> Any:
    """Round to nearest in numpy, float64, the scale in float16 as in the file."""
    groups = w.astype(np.float64).reshape(w.shape[0], -1, group)
    top, half = 2**bits - 1, 2 ** (bits - 1)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    if symmetric:
        scale, zero = np.abs(groups).max(-1, keepdims=True) / (half - 1), np.float64(half)
        scale = scale.astype(np.float16).astype(np.float64)
    else:
        scale = ((high - low) / top).astype(np.float16).astype(np.float64)
        zero = np.clip(-np.rint(low / scale), 0, top)
    codes = np.clip(np.rint(groups / scale) + zero, 0, top)
    return ((codes - zero) * scale).reshape(w.shape)


@pytest.mark.parametrize(
    ("recipe", "form", "scheme", "numbers"),
    [
        ("rtn-w4a16-g32", "compressed-tensors", "q4f16_autoawq_g32", (4, 32, False)),
        ("rtn-w4a16-g32", "autoawq", "q4f16_autoawq_g32", (4, 32, False)),
        ("rtn-w4a16-g64-sym", "compressed-tensors", None, (4, 64, True)),
        ("rtn-w8a8", "compressed-tensors", "q8f16_1_gk", (8, 128, True)),
        ("rtn-w4a16-g32", "float", "q0f16", (4, 32, False)),
    ],
)
def test_the_file_holds_the_rounded_weights(
    tiny: Path, tmp_path: Path, recipe: str, form: str, scheme: str | None, numbers: Any
) -> None:
    quantize(QuantizeJob(tiny, tmp_path, recipe, output_format=form))
    source = SOURCES["dense" if form == "float" else form]
    read = source.read(Checkpoint.open(tmp_path), LAYER)
    found = read.astype(np.float32) if form == "float" else read.dequantize()
    wanted = rounded(weights()[f"{LAYER}.weight"], *numbers)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 if form == "float" else 1e-6)
    if scheme is not None:  # exactly, or recognise would refuse
        assert recognise(tmp_path).scheme.name == scheme


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = QuantizeJob(tiny, tmp_path / "a", "rtn-w4a16-g32")
    quantize(QuantizeJob(tiny, tmp_path / "b", "rtn-w4a16-g32"))
    filled: list[int] = []
    original = loop._Loop._layer

    def dying(self: Any, i: int) -> Any:
        filled.append(i)
        if filled == [0, 1]:
            raise KeyboardInterrupt
        return original(self, i)

    monkeypatch.setattr(loop._Loop, "_layer", dying)
    with pytest.raises(KeyboardInterrupt):
        quantize(job)
    assert not list((tmp_path / "a").glob("*.safetensors"))
    quantize(job)
    assert filled == [0, 1, 1]
    same = [(tmp_path / x / "model.safetensors").read_bytes() for x in "ab"]
    assert same[0] == same[1]


def test_a_full_disk_is_told_and_the_next_run_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, original = QuantizeJob(tiny, tmp_path / "out", "rtn-w4a16-g32"), tensor_file.write
    full = [True]

    def write(path: Path, *rest: Any) -> None:
        if full and path.name == "part-00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, *rest)

    monkeypatch.setattr(tensor_file, "write", write)
    with pytest.raises(ArtifactError, match="Free space"):
        quantize(job)
    assert not [f for f in (tmp_path / "out").iterdir() if not f.name.startswith(".")]
    full.clear()
    assert len(quantize(job).layers) == 14


def _nan() -> dict[str, Any]:
    w = weights()[f"{LAYER}.weight"].copy()
    w[3, 5] = np.nan
    return {f"{LAYER}.weight": w}


@pytest.mark.parametrize(
    ("recipe", "changed", "said"),
    [
        ("rtn-w4a16-g48", {}, "128 input columns in groups of 48"),
        ("awq-w4a16-g32", {}, "no calibration data"),
        ("awk-w4a16-g32", {}, "Perhaps awq was meant"),
        ("missing.yml", {}, "no such recipe"),
        ({"weigths": {}}, {}, "weigths: unknown key; expected weights"),
        ({"weights": {"group_sise": 32}}, {}, "group_sise: unknown key; expected group_size"),
        ({"rounding": {"method": "gptq", "dampin": 1}}, {}, "dampin: unknown key; expected damp"),
        ({"keep": {"names": ["model.layers.0.mlp.gate"]}}, {}, "gate_proj was meant"),
        ("rtn-w4a16-g32", _nan(), f"{LAYER}.weight: holds NaN"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_leaves_nothing(
    tmp_path: Path, recipe: Any, changed: dict[str, Any], said: str
) -> None:
    model = checkpoint(tmp_path / "model", **changed)
    if isinstance(recipe, dict):
        (tmp_path / "r.json").write_text(json.dumps(recipe))
        recipe = tmp_path / "r.json"
    with pytest.raises(BridgeError) as error:
        quantize(QuantizeJob(model, tmp_path / "out", recipe))
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_no_input(tmp_path: Path, example_awq: Path) -> None:
    with pytest.raises(BridgeError, match="quantized already"):
        quantize(QuantizeJob(example_awq, tmp_path / "out", "rtn-w4a16-g128"))


def test_report_goes_through_json(tiny: Path, tmp_path: Path) -> None:
    found = quantize(QuantizeJob(tiny, tmp_path, "rtn-w4a16-g32", report=True))
    assert QuantizeReport.from_json(found.to_json()).layers == found.layers
    assert len(found.layers) == 14
    assert "down_proj" in (tmp_path / "quantize.html").read_text()

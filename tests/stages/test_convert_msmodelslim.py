"""Files of the real msModelSlim end to end: converted, the weights are the tool's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import SourceError
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

GOLDEN = Path(__file__).parents[1] / "golden" / "sources" / "msmodelslim"
# real-nf4 cannot be read.
CASES = sorted(p.parent.name for p in GOLDEN.glob("real-*/expected.safetensors"))
FUSED = {"q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 1), "v_proj": ("qkv_proj", 2),
         "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}  # fmt: skip


def stored(cache, scheme, path):
    """The weight that the artifact holds under ``path``, or None."""
    params = {
        n.removeprefix(f"{path}."): cache.array(n)
        for n in cache.records
        if n.startswith(f"{path}.") and "kv_cache" not in n
    }
    if set(params) == {"weight"}:
        return params["weight"].astype(np.float32)
    return scheme.decode(params).dequantize() if params else None


def part_of(cache, scheme, layer, wanted):
    """The rows of ``layer``, which stands alone or is a part of a fused one."""
    alone = stored(cache, scheme, layer)
    if alone is not None:
        return alone
    home, _, name = layer.rpartition(".")
    whole, place = FUSED[name]
    rows = stored(cache, scheme, f"{home}.{whole}")
    ends = {0: (0, len(wanted)), 1: (-2 * len(wanted), -len(wanted)), 2: (-len(wanted), None)}
    begin, end = ends[place] if whole == "qkv_proj" or place == 0 else (len(wanted), None)
    return rows[begin:end]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_tools_own(tmp_path, case):
    """Up to the rounding of its float32 scales, and of float layers, to the scheme's float16."""
    report = convert_weight(ConvertJob(GOLDEN / case, tmp_path / "out"))
    cache, scheme = read_index(tmp_path / "out"), SCHEMES[report.quantization]
    expected = load_file(GOLDEN / case / "expected.safetensors")
    for name in [n for n in expected if n.endswith(".weight")]:
        wanted = expected[name]
        got = part_of(cache, scheme, name.removesuffix(".weight"), wanted)
        assert (np.abs(got - wanted) <= 2**-11 * np.abs(wanted) + 1e-6).all()


@pytest.mark.parametrize(
    ("case", "alone", "floats"),
    [
        ("gate", {"gate_proj", "up_proj"}, {"gate_proj", "down_proj", "o_proj"}),
        ("q-k", {"q_proj", "k_proj", "v_proj"},
         {"q_proj", "k_proj", "o_proj", "gate_up_proj", "down_proj"}),
    ],
)  # fmt: skip
def test_a_partly_float_layer_falls_apart(tmp_path, case, alone, floats):
    report = convert_weight(ConvertJob(GOLDEN / f"real-w8a8-fallback-{case}", tmp_path / "out"))
    assert {x.rpartition(".")[2] for x in report.float_layers} == floats
    layers = {n.split(".")[4] for n in read_index(tmp_path / "out").records if "_proj." in n}
    assert alone <= layers


def test_what_mindie_writes_into_the_config_is_known(tmp_path):
    """``--mindie_format`` adds these two; the description still says what the weights are."""
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / "real-w8a8-m1-safe-tensor", home)
    config = json.loads((home / "config.json").read_text())
    config |= {"quantize": "w8a8", "quantization_config": {"w_bit": 8, "group_size": 0}}
    (home / "config.json").write_text(json.dumps(config))
    findings = convert_weight(ConvertJob(home, tmp_path / "out")).findings
    assert not [finding for finding in findings if "unknown" in finding]


def test_a_norm_whose_copy_differs_is_refused(tmp_path):
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / "real-w8a8-m1-safe-tensor", home)
    (file,) = home.glob("quant*.safetensors")
    name = "model.norm.module.weight"
    save_file({n: t * 2 if n == name else t for n, t in load_file(file).items()}, file)
    with pytest.raises(SourceError, match=f"{name}: two tensors that should hold the same differ"):
        convert_weight(ConvertJob(home, tmp_path / "out"))
    assert not (tmp_path / "out").exists()

"""Files of the real msModelSlim end to end: converted, the weights are the tool's own."""

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
# All of one type, or of types that one scheme holds.
WHOLE = (
    "w8a8", "w8a8-bf16", "w8a8-tensor", "w8a8-m1", "w8a8-m1-safe-tensor", "w8a8-kv8", "w8a8-fa",
    "w8a8-mix", "w8a8-tp2", "mixed-types", "w8a8-dynamic", "w8a16", "w8a16-asym-gptq", "w4a16",
    "w4a16-g32", "w4a16-g32-safe-tensor", "w4a8-dynamic", "w4a8-dynamic-safe-tensor",
    "w8a8s-co-sparse", "w8a8s-lowbit",
)  # fmt: skip
# Where q_proj, v_proj and down_proj went: MLC's layer, and the end of it that they are.
PLACES = {
    "self_attn.q_proj": ("self_attn.qkv_proj", 0),
    "self_attn.v_proj": ("self_attn.qkv_proj", -1),
    "mlp.down_proj": ("mlp.down_proj", 0),
}


@pytest.mark.parametrize("case", WHOLE)
def test_weights_are_the_tools_own(tmp_path, case):
    """Up to the rounding of its float32 scales to the scheme's float16."""
    home = GOLDEN / f"real-{case}"
    report = convert_weight(ConvertJob(home, tmp_path / "out"))
    cache, scheme = read_index(tmp_path / "out"), SCHEMES[report.quantization]
    expected = load_file(home / "expected.safetensors")
    for layer, (fused, end) in PLACES.items():
        ours = f"model.layers.0.{fused}."
        params = {n.removeprefix(ours): cache.array(n) for n in cache.records if n.startswith(ours)}
        got = scheme.decode(params).dequantize()
        wanted = expected[f"model.layers.0.{layer}.weight"]
        part = got[-len(wanted) :] if end else got[: len(wanted)]
        assert (np.abs(part - wanted) <= 2**-11 * np.abs(wanted) + 1e-6).all()


def test_a_norm_whose_copy_differs_is_refused(tmp_path):
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / "real-w8a8-m1-safe-tensor", home)
    (file,) = home.glob("quant*.safetensors")
    name = "model.norm.module.weight"
    save_file({n: t * 2 if n == name else t for n, t in load_file(file).items()}, file)
    with pytest.raises(SourceError, match=f"{name}: two tensors that should hold the same differ"):
        convert_weight(ConvertJob(home, tmp_path / "out"))
    assert not (tmp_path / "out").exists()

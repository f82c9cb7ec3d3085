"""``build --recipe``: a float checkpoint becomes a compiled model by way of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import ConfigError
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import SOURCES, Checkpoint
from mlc_bridge.stages.build import BuildJob, build, plan
from mlc_bridge.stages.quantize import QuantizeJob, quantize
from tests.quantizers.test_quantize import LAYER


@pytest.mark.slow
def test_the_model_holds_what_the_recipe_made(tiny: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "model", tmp_path / "quantized"
    found = build(BuildJob(tiny, out, recipe="rtn-w4a16-g32"))
    quantize(QuantizeJob(tiny, alone, "rtn-w4a16-g32"))
    assert found.quantize is not None
    assert found.plan.quantization == "q4f16_autoawq_g32"
    assert (out / "lib.so").exists()
    assert not (out / "quantized").exists()
    names = {s: f"{LAYER}.{s}" for s in SCHEMES["q4f16_autoawq_g32"].params(64, 128)}
    cache = read_index(out)
    held = SCHEMES["q4f16_autoawq_g32"].decode({s: cache.array(n) for s, n in names.items()})
    made = SOURCES["compressed-tensors"].read(Checkpoint.open(alone), LAYER)
    assert (held.codes.unpack() == made.codes.unpack()).all()


def test_a_plan_of_a_recipe_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="build --dry-run on what it wrote"):
        plan(BuildJob(tiny, tmp_path / "out", recipe="rtn-w4a16-g32"))

"""LLMC's YAML: every config that we ship runs as it is, and every key means what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.llmc import read_llmc
from mlc_bridge.quantizers.recipe import Recipe
from mlc_bridge.sources import Checkpoint
from mlc_bridge.stages.quantize import QuantizeJob, quantize
from mlc_bridge.stages.recognise import recognise
from tests.quantizers.tiny import checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs/quantization/backend"
FILES = sorted(CONFIGS.rglob("*.yml"))
WHERE = Path("recipe.yml")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model under groups of 128: both widths doubled."""
    from tests.quantizers import tiny

    before = tiny.HIDDEN, tiny.SHAPES
    tiny.HIDDEN = 128
    tiny.SHAPES = {n: (2 * a if a == 64 else a, 2 * b if b == 64 else b)
                   for n, (a, b) in before[1].items()}  # fmt: skip
    try:
        changed = {"hidden_size": 128, "head_dim": 32}
        return checkpoint(tmp_path_factory.mktemp("wide"), changed)
    finally:
        tiny.HIDDEN, tiny.SHAPES = before


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_runs_as_it_is(
    file: Path, wide: Path, calibration: Path, tmp_path: Path
) -> None:
    found = quantize(QuantizeJob(wide, tmp_path, file, calibration, 2, calibration_length=16))
    folder = {"mlcllm": "mlcllm_quant_model", "autoawq": "autoawq_quant_model"}
    backend = file.relative_to(CONFIGS).parts[0]
    if file.stem == "step_1_awq":
        assert found.output == tmp_path / "transformed_model"
        assert recognise(found.output).source.name == "dense"
        name = "model.layers.0.input_layernorm.weight"
        same = [Checkpoint.open(d).tensor(name) for d in (wide, found.output)]
        assert not np.array_equal(*same)
    else:
        assert found.output == tmp_path / folder[backend]
        assert recognise(found.output).scheme.name == "q4f16_autoawq"
        assert len(found.layers) == 14


def recipe(**quant: Any) -> Recipe:
    block = {"method": "RTN", "weight": {"bit": 4, "granularity": "per_group", "group_size": 32}}
    return read_llmc({"quant": {**block, **quant}}, WHERE)[0]


def test_keys_mean_what_they_say() -> None:
    found = recipe(
        method="GPTQ",
        quant_out=True,
        special={"actorder": True, "static_groups": True, "percdamp": 0.05, "blocksize": 64},
    )
    assert found.rounding.model_dump() == {
        "method": "gptq", "damping": 0.05, "block": 64, "order": True, "static_groups": True,
    }  # fmt: skip
    assert found.chained
    assert not found.sequential
    act = {"bit": 8, "symmetric": True, "granularity": "per_token"}
    smooth = recipe(method="SmoothQuant", act=act, special={"alpha": 0.8})
    assert smooth.inputs.kind == "dynamic"
    assert smooth.edits[0].model_dump()["beta"] == pytest.approx(0.2)
    assert recipe(method="Quarot", special={"rotate_mode": "random"}).rotations[0].kind == "random"


@pytest.mark.parametrize(
    ("quant", "said"),
    [
        ({"metod": "Awq"}, "quant.metod: unknown key; expected method"),
        ({"special": {"trans_versoin": "v1"}}, "trans_versoin: unknown key; expected trans_vers"),
        ({"method": "SpQR"}, "expected RTN, Awq, GPTQ"),
        ({"method": "Quarot", "special": {"online_rotate": True}}, "online_rotate: rotations"),
        ({"weight": {"bit": "e4m3", "quant_type": "float-quant"}}, "e4m3_e4m3_f16"),
        ({"kvcache": {"method": "Kivi", "bit": 4}}, "quant.kvcache"),
        ({"act": {"bit": 4, "granularity": "per_token"}}, "found 4 bits per_token"),
    ],
)
def test_what_is_not_here_is_refused_by_name(quant: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(**quant)


def test_the_exporters_choose_format_and_folder() -> None:
    values = yaml.safe_load(FILES[0].read_text())
    values["save"] = {"save_vllm": True, "save_path": "x"}
    found = read_llmc(values, WHERE)[0].output
    assert (found.format, found.folder) == ("compressed-tensors", "vllm_quant_model")
    values["save"] |= {"save_fake": True}
    with pytest.raises(ConfigError, match="one export a run"):
        read_llmc(values, WHERE)

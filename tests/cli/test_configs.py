"""The shipped YAML files: each parses, and says what its name says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlc_bridge import BuildJob
from mlc_bridge.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUANTIZATION = sorted((CONFIGS / "quantization/backend").rglob("*.yml"))
DEPLOY = sorted((CONFIGS / "deploy").glob("*.yml"))
# LLMC's keys (its own loader takes no others in these places).
SECTIONS = {"base", "model", "calib", "eval", "quant", "save"}
METHODS = {"awq_w4a16": "Awq", "gptq_w4a16": "GPTQ", "rtn_w4a16": "RTN",
           "step_1_awq": "Awq", "step_2_omniq": "OmniQuant"}  # fmt: skip


def test_both_backends_have_the_same_files() -> None:
    by_backend = {
        name: sorted(p.relative_to(root) for p in root.rglob("*.yml"))
        for name in ("mlcllm", "autoawq")
        if (root := CONFIGS / "quantization/backend" / name)
    }
    assert by_backend["mlcllm"] == by_backend["autoawq"]
    assert len(by_backend["mlcllm"]) == 5


@pytest.mark.parametrize("path", QUANTIZATION, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_quantization_config(path: Path) -> None:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    assert set(found) <= SECTIONS
    assert found["quant"]["method"] == METHODS[path.stem]
    weight = found["quant"]["weight"]
    assert (weight["bit"], weight["symmetric"], weight["group_size"]) == (4, False, 128)
    assert found["eval"]["eval_pos"] == ["fake_quant"]
    backend = path.relative_to(CONFIGS / "quantization/backend").parts[0]
    if path.stem == "step_1_awq":
        assert found["save"]["save_trans"] is True
    else:
        assert found["save"][f"save_{backend}"] is True
        assert weight["pack_version"] == "gemm_pack"
    if "calib" in found:
        assert found["calib"]["seed"] == found["base"]["seed"]


@pytest.mark.parametrize("path", DEPLOY, ids=lambda p: p.stem)
def test_deploy_recipe(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    given = {"model_dir": "m", "output": "o"}
    job = BuildJob.from_recipe(path, **{k: v for k, v in given.items() if k not in found})
    for key, value in found.items():
        assert getattr(job, key) == value


def test_flags_win_over_the_recipe() -> None:
    job = BuildJob.from_recipe(CONFIGS / "deploy/example_awq.yml", output="elsewhere")
    assert (job.output, job.quantization) == ("elsewhere", "q4f16_autoawq")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_dir: m\noutput: o\nquantisation: q0f16\n", "quantisation"),
        ("model_dir: m\noutput: o\nmax_batch_size: many\n", "max_batch_size"),
        ("model_dir: m\n", "output"),
        ("- model_dir\n", "key: value"),
        ("model_dir: [m\n", "YAML"),
    ],
)
def test_bad_recipe_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        BuildJob.from_recipe(path)
    with pytest.raises(ConfigError, match="no such recipe"):
        BuildJob.from_recipe(tmp_path / "none.yml")

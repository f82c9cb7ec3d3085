"""An architecture of another package: the worked example of docs/models.md, against HF float32."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml
from built import build
from tiny import SHARED, save_model

from mlc_bridge.models import MODELS, Arch

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
FILE = PLUGIN / "mlc_bridge_stablelm.py"
REST = ("prefill", "batch_prefill", "batch_decode")


@pytest.fixture
def arch(monkeypatch: pytest.MonkeyPatch) -> Arch:
    """Loaded by the name that its entry point gives, and entered as the table enters it."""
    groups = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, name = groups["mlc_bridge.models"]["stablelm"].partition(":")
    spec = importlib.util.spec_from_file_location(module, PLUGIN / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module, loaded)  # dataclasses look it up
    spec.loader.exec_module(loaded)
    made: Arch = getattr(loaded, name)
    monkeypatch.setattr(MODELS, "_own", {**MODELS._items, made.name: made})
    return made


def test_it_runs(arch: Arch, tmp_path: Path) -> None:
    more = {"use_parallel_residual": True, "use_qkv_bias": True}
    checkpoint = save_model("stablelm", {**SHARED, **more}, tmp_path / "model")
    model = build(checkpoint, tmp_path / "out", "q0f32", REST)
    ids, kv = model.tokens(40), model.lib.cache()
    steps = [model.lib.all_logits(kv, ids[:38]), *(model.lib.decode(kv, t) for t in ids[38:])]
    got = np.concatenate(steps)
    np.testing.assert_allclose(got, model.expected(ids), atol=1e-4)


def test_its_defaults_are_those_of_transformers(arch: Arch) -> None:
    full = transformers.AutoConfig.for_model("stablelm").to_dict()
    assert arch.config({"model_type": "stablelm"}) == arch.config(full)
    assert arch.unused(full) == ()


def test_both_joins_are_in_the_weight_table(arch: Arch) -> None:
    def norms(parallel: bool) -> int:
        config: dict[str, Any] = {**SHARED, "use_parallel_residual": parallel}
        return sum(weight.role == "norm" for weight in arch.weights(arch.config(config)))

    assert (norms(True), norms(False)) == (3, 5)


def test_the_page_shows_the_file() -> None:
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    shown = re.findall(r"```python\n(.*?)```", page, re.S)
    assert FILE.read_text("utf-8") in shown


def test_the_page_tells_of_every_architecture() -> None:
    told = yaml.safe_load((ROOT / "docs" / "models.yml").read_text("utf-8"))
    assert set(told) == set(MODELS)
    assert all(words["opens"] for words in told.values())
    rows = re.findall(r"^\| (\w+) \|", (ROOT / "docs" / "models.md").read_text("utf-8"), re.M)
    assert set(told) <= set(rows)

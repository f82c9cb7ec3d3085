"""`python -m benchmarks.gpu` on a CPU: pack, run without a compiler, adopt; errors are seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.adopt import adopt_file
from benchmarks.gpu.cases import Layer, awq_plans, decode_plans, plan_name
from tir_schedules.gpu import choices

ROOT = Path(__file__).parents[1]
LAYER, ATTENTION = "q4f16_autoawq 256x512 m=1", "decode 4/2x64 keys=40 batch=2"


def gpu(*arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    options = ("--suite", "tiny", "--target", "llvm", "--bare")
    for only in (LAYER, ATTENTION):
        done = gpu("pack", out, *options, "--only", only)
        assert done.returncode == 0, done.stderr
    about = json.loads((out / "packed.json").read_text())
    (out / "packed.json").write_text(json.dumps({**about, "cases": [LAYER, ATTENTION]}))
    return out


def test_a_folder_is_measured_without_a_compiler(folder: Path) -> None:
    done = gpu("run", folder, TVM_USE_RUNTIME_LIB="1")
    assert done.returncode == 0, done.stderr
    measured = json.loads((folder / "measured.json").read_text())
    assert set(measured["cases"]) == {LAYER, ATTENTION}
    for variants in measured["cases"].values():
        assert variants["rules"]["right"]
        assert 0 < variants["rules"]["error"] < 2e-3
        assert variants["rules"]["seconds"] > 0


def test_what_is_wrong_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from benchmarks.gpu.measure import run_folder

    wanted = Layer.expected
    monkeypatch.setattr(Layer, "expected", lambda self: wanted(self) * 1.01)
    assert run_folder(folder, 1.0, LAYER) == 1
    assert f"WRONG: {LAYER}: rules" in capsys.readouterr().err


def test_the_fastest_right_variant_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the plans that are right in every case of the key, the one that loses the least."""
    layer = Layer("q4f16_autoawq", 256, 512, 1)
    first, second, third = awq_plans()[:3]
    deep, wide = decode_plans()[:2]
    times = {first: (3.0, True), second: (2.0, True), third: (1.0, False)}
    variants = {
        plan_name(p): {"seconds": s, "right": right, "choice": layer.choice(plan_name(p))}
        for p, (s, right) in times.items()
    }
    variants["rules"] = {"seconds": 0.5, "right": True, "choice": None}
    name = "32/32 heads of 128"

    def attention(a: float, b: float) -> dict[str, Any]:
        return {
            plan_name(p): {"seconds": s, "right": True, "choice": ["decode", name, vars(p)]}
            for p, s in ((deep, a), (wide, b))
        }

    cases = {layer.name: variants, "short": attention(1.0, 1.1), "long": attention(9.0, 3.0)}
    measured, table = tmp_path / "measured.json", tmp_path / "choices.json"
    measured.write_text(json.dumps({"card": "X", "date": "2026-11-27", "cases": cases}))
    kept = {"awq_few": {"other": {"words": 1, "warps": 8, "ahead": 8}}}
    table.write_text(json.dumps(kept))
    adopt_file(measured, table)
    found = json.loads(table.read_text())
    key = choices.layer(256, 512, 128, 8)
    assert found["awq_few"] == {**kept["awq_few"], key: vars(second)}
    assert found["decode"] == {name: vars(wide)}
    assert (found["card"], found["date"]) == ("X", "2026-11-27")

    monkeypatch.setattr(choices, "FILE", table)
    choices.measured.cache_clear()
    assert choices.measured("awq_few")[key] == vars(second)
    choices.measured.cache_clear()

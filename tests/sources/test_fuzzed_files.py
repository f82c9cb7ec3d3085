"""A thousand mutants of the goldens: refused, or the same weights; ``fuzz.py`` runs more."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from fuzz import run
from safetensors.numpy import save_file

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import Checkpoint


def test_a_thousand_mutants(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally, wrong = run(1000, 27, tmp_path / "mutant")
    assert not wrong
    assert min(tally["refused"], tally["same"]) > 100  # the mutants are neither all dead nor alive
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def open_with(home: Path, text: str, name: str = "config.json") -> Checkpoint:
    save_file({}, home / "model.safetensors")
    (home / name).write_text(text)
    return Checkpoint.open(home / name if "index" in name else home)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", "more than 64 levels"),
        ('{"a": ' + "[" * 9999, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("3", "not a JSON object"),
    ],
)
def test_json_that_no_tool_writes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=rf"config\.json: .*{message}"):
        open_with(tmp_path, text)


@pytest.mark.parametrize("shard", ["a" * 5000, "a\0b", "\ud800", 3, ["x"], None])
def test_shards_with_impossible_names(tmp_path: Path, shard: object) -> None:
    index = "model.safetensors.index.json"
    with pytest.raises(SourceError, match=r"a shard is|leads out"):
        open_with(tmp_path, json.dumps({"weight_map": {"a": shard}}), index)

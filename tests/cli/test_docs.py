"""The guides' commands, run in order on the example model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlc_bridge.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
NEEDS_LIB = "--trace"  # tests/stages/test_verify.py runs what it says


def commands(guide: str) -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", (DOCS / guide).read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("mlc-bridge ")]


def test_the_guide_to_trust(
    example_awq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(example_awq), "DIST": str(tmp_path / "dist")}
    said = {}
    for words in commands("trust.md"):
        args = [places.get(word, word) for word in words[1:]]
        if NEEDS_LIB in args:
            shown = CliRunner().invoke(app, [args[0], "--help"]).stdout
            assert all(word in shown for word in args if word.startswith("--"))
            continue
        ran = CliRunner().invoke(app, args)
        # check fails for the library alone, which the guide compiles later
        assert ran.exit_code == (2 if args[0] == "check" else 0), ran.output
        said[" ".join(words)] = ran.stdout
    assert len(said) == 6
    failed = re.findall(r"(\w+) +FAILED", said["mlc-bridge check DIST --deep"])
    assert failed == ["lib"]
    assert "files are as they were" in said["mlc-bridge check DIST --deep"]
    twins = said["mlc-bridge verify DIST --against DIST --weights-only"]
    assert "all 39 weights hold the other model's values" in twins

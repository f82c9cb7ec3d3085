"""The README against the repository: commands, flags and files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlc_bridge.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"^mlc-bridge\s+([a-z-]+)", README, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_with_the_flags_shown(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    for line in re.findall(rf"^mlc-bridge\s+{command}\b[^#\n]*", README, re.MULTILINE):
        for flag in re.findall(r"--[a-z-]+", line):
            assert flag in shown.output, f"{command} {flag}"


def test_enough_commands_are_shown() -> None:
    assert {"build", "chat", "check", "doctor", "inspect", "serve", "verify"} <= set(COMMANDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(
    r"(?:docs|configs|examples)/[\w./-]*\w", README))))  # fmt: skip
def test_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text("utf-8")


def test_the_table_lists_every_architecture() -> None:
    from mlc_bridge import MODELS

    table = README.partition("<!-- test matrix")[2].partition("<!-- end of test matrix")[0]
    rows = set(re.findall(r"^\| ([\w-]+) \|", table, re.MULTILINE))
    assert set(MODELS) <= rows

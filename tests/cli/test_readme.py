"""README, guides and examples against the repository: every command parses, every file exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from mlc_bridge.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
NAMED = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md",
         "examples/plugin/README.md", "examples/models/README.md", "Dockerfile")  # fmt: skip
PAGES = {p.relative_to(ROOT).as_posix(): p.read_text("utf-8")
         for p in (*(ROOT / name for name in NAMED), *GUIDES)}  # fmt: skip
README = PAGES["README.md"]
# At the start of a line, of `code`, or after the image of a `docker run`.
COMMAND = re.compile(r"(?:^|`|-v .*)mlc-bridge(?::\w+)? +((?!=)[a-z][^`\n]*)", re.MULTILINE)
COMMANDS = sorted({
    (page, line.strip())
    for page, text in PAGES.items()
    for line in COMMAND.findall(text.replace("\\\n", " "))
})  # fmt: skip
GROUP = typer.main.get_command(app)
ROOMS = [p.name for home in (ROOT, ROOT / "mlc_bridge") for p in home.iterdir()
         if p.is_dir() and p.name.isidentifier() and p.name not in ("dist", "build")]  # fmt: skip
FILE = re.compile(rf"(?<![\w/.:-])(?:{'|'.join(sorted(ROOMS))})/[\w./-]*\w")


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_the_command_line_takes_what_is_shown(page: str, line: str) -> None:
    """By its own parser, which knows MLC LLM's words too; nothing is run."""
    name, *words = shlex.split(line, comments=True)
    command = GROUP.get_command(typer.Context(GROUP), name)
    assert command is not None, f"{page}: {line}"
    if words:  # a bare name in a sentence needs no more
        command.make_context(name, words)


def test_every_command_is_shown_somewhere() -> None:
    assert {line.split()[0] for _, line in COMMANDS} >= set(GROUP.commands)


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    text, home = PAGES[page], (ROOT / page).parent
    named = set(FILE.findall(text))
    lost = [x for x in named if not any((at / x).exists() for at in (ROOT, ROOT / "mlc_bridge"))]
    linked = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert lost + [x for x in linked if not (home / x).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^|`)make (\w+)", PAGES[page], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci/run").read_text("utf-8")


def test_every_guide_is_linked() -> None:
    texts = "".join(PAGES.values())
    assert [p.name for p in GUIDES if not re.search(rf"\((docs/)?{p.name}", texts)] == []


def test_the_rooms_are_those_that_the_linter_keeps_apart() -> None:
    """ARCHITECTURE.md's table against import-linter's contracts."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    kept = {
        contract["source_modules"][0]: contract["forbidden_modules"]
        for contract in contracts["contracts"]
        if contract["type"] == "forbidden" and len(contract["source_modules"]) == 1
    }
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([^|]+) \|$", PAGES["ARCHITECTURE.md"], re.MULTILINE)
    told = {room: re.findall(r"\w+", refused) for room, refused in rows}
    assert told == {
        room.removeprefix("mlc_bridge."): [x.removeprefix("mlc_bridge.") for x in refused]
        for room, refused in kept.items()
    }


def test_the_table_lists_every_architecture() -> None:
    from mlc_bridge import MODELS

    table = README.partition("<!-- test matrix")[2].partition("<!-- end of test matrix")[0]
    rows = set(re.findall(r"^\| ([\w-]+) \|", table, re.MULTILINE))
    assert set(MODELS) <= rows

"""Runs the test matrix of architectures and schemes; writes README.md's table and docs/models.md's.

    python docs/support_table.py [pytest's arguments, such as -k nemotron]

A cell is "yes" when every test of the pair passed: logits against Hugging Face's in float32, of the
prompt at once, in pieces and token by token (``MATRIX``). A dash stands where nothing was measured;
cells whose tests were not run now keep what models.md says. ``models.yml`` tells what each
architecture opens and what is left out of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
MATRIX = tuple(f"tests/models/test_{x}.py" for x in ("architectures", "classic", "hybrids"))
LOGITS = ("test_quantized", "test_prompt", "test_logits", "test_batch")
MARKS = {True: "yes", False: "no", None: "-"}
BEGIN, END = "<!-- test matrix: made by docs/support_table.py -->", "<!-- end of test matrix -->"
SCHEMES = ("q0f32", "q4f16_1", "q4f16_autoawq")
Cells = dict[tuple[str, str], bool]


def main() -> None:
    page, readme = REPOSITORY / "docs" / "models.md", REPOSITORY / "README.md"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", *MATRIX, f"--junitxml={report}", *sys.argv[1:]],
            check=False,
            cwd=REPOSITORY,
        )
        cells = said(page.read_text("utf-8")) | results(report)
    known = about()
    put(page, markdown(known, cells))
    put(readme, markdown({name: {} for name in known}, cells))


def about() -> dict[str, dict[str, str]]:
    """Architecture -> what it opens, what is left out; in the order of the page."""
    found: Any = yaml.safe_load((REPOSITORY / "docs" / "models.yml").read_text("utf-8"))
    return dict(found)


def put(file: Path, table: str) -> None:
    head, _, rest = file.read_text("utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    file.write_text(f"{head}{BEGIN}\n{table}{END}{tail}", encoding="utf-8")


def said(page: str) -> Cells:
    """The cells of a table written before."""
    found: Cells = {}
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        marks = zip(SCHEMES, cells[: len(SCHEMES)], strict=False)
        found |= {(name, s): mark == "yes" for s, mark in marks if mark in ("yes", "no")}
    return found


def results(report: Path) -> Cells:
    """(architecture, scheme) -> whether every test of it passed."""
    found: Cells = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if not case.attrib["name"].startswith(LOGITS):
            continue
        key = cell(case.attrib["name"])
        bad = any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
        found[key] = found.get(key, True) and not bad
    return found


def cell(test: str) -> tuple[str, str]:
    """Architecture and scheme of ``name[architecture-...]``; variants (llama-mha) count as one."""
    name, _, inside = test.partition("[")
    inside = inside.removesuffix("]")
    scheme = re.search(r"-(q\d[a-z0-9_]*)$", inside)
    arch = inside.removesuffix(scheme[0]) if scheme else inside
    usual = "q4f16_1" if name == "test_quantized" else "q0f32"
    return arch.partition("-")[0], scheme[1] if scheme else usual


def markdown(known: dict[str, dict[str, str]], cells: Cells) -> str:
    """A row for every architecture; what it opens where that is told."""
    told = any(known.values())
    head = ["architecture", *(f"`{s}`" for s in SCHEMES), *(("opens", "without") if told else ())]
    lines = [_row(head), "|---" * len(head) + "|"]
    for name, words in known.items():
        marks = [MARKS[cells.get((name, scheme))] for scheme in SCHEMES]
        more = [words["opens"], words.get("without", "")] if told else []
        lines.append(_row([name, *marks, *more]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

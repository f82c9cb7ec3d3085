"""Runs the test matrix of architectures and schemes and writes its result into README.md.

    python docs/support_table.py

A cell is "yes" when every test of the pair passed: logits against Hugging Face's in float32 and,
for q0f32, the prompt in chunks, token by token and in a batch, all of them in
tests/models/test_architectures.py. The architectures of tests/models/test_classic.py are compared
in q0f32 alone: a dash stands where nothing was measured.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MATRIX = ("tests/models/test_architectures.py", "tests/models/test_classic.py")
MARKS = {True: "yes", False: "no", None: "-"}
BEGIN, END = "<!-- test matrix: made by docs/support_table.py -->", "<!-- end of test matrix -->"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", *MATRIX, f"--junitxml={report}"],
            check=False,
            cwd=REPOSITORY,
        )
        table = markdown(results(report))
    readme = REPOSITORY / "README.md"
    head, _, rest = readme.read_text("utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    readme.write_text(f"{head}{BEGIN}\n{table}{END}{tail}", encoding="utf-8")


def results(report: Path) -> dict[tuple[str, str], bool]:
    """(variant, scheme) -> whether every test of it passed."""
    found: dict[tuple[str, str], bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        variant, scheme = cell(case.attrib["name"])
        key = variant, scheme
        bad = any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
        found[key] = found.get(key, True) and not bad
    return found


def cell(test: str) -> tuple[str, str]:
    """Architecture and scheme of ``name[architecture-...]``; tests without a scheme use q0f32."""
    inside = test.partition("[")[2].removesuffix("]")
    scheme = re.search(r"-(q\d[a-z0-9_]*)$", inside)
    if scheme:
        return inside.removesuffix(scheme[0]), scheme[1]
    return re.sub(r"-\d+$", "", inside), "q0f32"


def markdown(found: dict[tuple[str, str], bool]) -> str:
    variants = list(dict.fromkeys(variant for variant, _ in found))
    schemes = sorted(dict.fromkeys(scheme for _, scheme in found))
    lines = ["| architecture | " + " | ".join(f"`{s}`" for s in schemes) + " |"]
    lines.append("|---" * (len(schemes) + 1) + "|")
    for variant in variants:
        cells = [MARKS[found.get((variant, s))] for s in schemes]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

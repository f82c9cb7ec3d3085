"""Runs the commands of `make demo` and draws what they print as docs/demo.svg.

python docs/record_demo.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parents[1]
PROMPT = "Write a Python function `close` that closes the connection."


def main() -> None:
    console = Console(record=True, width=104, file=StringIO())
    with tempfile.TemporaryDirectory() as folder:
        shown, real = "dist/demo", str(Path(folder) / "demo")
        model = "examples/models/stdlib-llama-7m-awq"
        for arguments in (
            ["build", model, "-o", real, "--no-cache"],
            ["chat", real, "--temperature", "0", "--prompt", PROMPT],
        ):
            quoted = [f'"{a}"' if " " in a else a for a in arguments]
            command = "mlc-bridge " + " ".join(quoted).replace(real, shown).replace(
                " --no-cache", ""
            )
            console.print(Text("$ ", style="green bold") + Text(command, style="bold"))
            ran = subprocess.run(
                [sys.executable, "-m", "mlc_bridge", *arguments],
                capture_output=True, text=True, check=True, cwd=REPOSITORY,
            )  # fmt: skip
            console.print(Text(ran.stdout.replace(real, shown).rstrip("\n")))
            speed = [line for line in ran.stderr.splitlines() if line.startswith("(")]
            console.print(Text("\n".join(speed), style="dim"))
    svg = console.export_svg(title="mlc-bridge")
    (REPOSITORY / "docs/demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()

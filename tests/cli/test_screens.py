"""What a person sees: the plan, progress outside a terminal, the verdict, hints for wrong words."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mlc_bridge import BuildPlan, CompileJob, GenConfigJob, compile_model, gen_config
from mlc_bridge.cli import progress
from mlc_bridge.cli.app import app
from mlc_bridge.errors import ConfigError
from mlc_bridge.schemes import SCHEMES


def test_dry_run_is_the_plan_and_writes_nothing(example_awq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["build", str(example_awq), "-o", str(out), "--dry-run"])
    assert told.exit_code == 0, told.output
    for word in ("model.layers.*.mlp.down_proj", "q4f16_autoawq", "memory to run", "time"):
        assert word in told.output
    args = ["build", str(example_awq), "-o", str(out), "--dry-run", "--json"]
    found = BuildPlan.from_json(CliRunner().invoke(app, args).stdout)
    assert found.disk == found.nbytes < found.memory
    # 2 x 6 layers x heads x width x 2048 tokens, float16
    assert found.memory - found.nbytes == 2 * 6 * 4 * 32 * 2048 * 2
    assert not out.exists()


def test_lines_outside_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a label, then one line every few seconds with the time that is left."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with progress.Bars(Console(file=out)) as bars:
        for done in range(0, 101, 10):
            bars("compile", done, 100)
            clock[0] += 3.0
    lines = out.getvalue().splitlines()
    assert lines[0] == "compile ..."
    assert lines[1] == "compile 20% (20 of 100) after 6 s, about 24 s left"
    assert len(lines) == 5


def test_no_bar_shares_a_line_with_text() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with progress.Bars(console) as bars:
        bars("convert", 1, 2)
        bars.pause()
        before = out.getvalue()
        assert not bars._progress.live.is_started
        bars("convert", 2, 2)
        assert bars._progress.live.is_started
    assert before


def test_cancelling_inside_the_compiler_comes_out_as_it_is(
    example_awq: Path, tmp_path: Path
) -> None:
    class Cancelled(Exception):
        pass

    def stop(label: str, done: int, total: int) -> None:
        if label == "compile":
            raise Cancelled(f"{done} of {total}")

    gen_config(GenConfigJob(example_awq, tmp_path, conv_template="chatml"))
    with pytest.raises(Cancelled, match="1 of"):
        compile_model(CompileJob(tmp_path, cache=False), stop)
    assert not (tmp_path / "lib.so").exists()


def test_inspect_ends_with_the_verdict(example_awq: Path) -> None:
    told = CliRunner().invoke(app, ["inspect", str(example_awq), "--samples-only"])
    last = told.stdout.splitlines()[-1]
    assert "build would take q4f16_autoawq, exact; template" in last
    assert last.endswith("6.7 MB")


def test_near_words_are_named() -> None:
    with pytest.raises(ConfigError, match="Perhaps q4f16_autoawq was meant"):
        SCHEMES["q4f16_autoaqw"]
    assert "Did you mean 'build'" in CliRunner().invoke(app, ["biuld"]).output
    assert "--quantization" in CliRunner().invoke(app, ["build", "--quantisation", "x"]).output

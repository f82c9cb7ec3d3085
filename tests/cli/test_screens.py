"""What a person sees: the plan, progress outside a terminal, the verdict, hints for wrong words."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mlc_bridge import BuildPlan, CompileJob, GenConfigJob, compile_model, gen_config
from mlc_bridge.cli import progress, show
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


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["build", "convert", "verify", "serve", "chat", "upload"])
def test_help_fits_and_cuts_no_word(command: str, width: int) -> None:
    told = CliRunner().invoke(app, [command, "--help"], terminal_width=width).output
    lines = told.splitlines()
    assert max(map(len, lines)) <= width
    assert width == 80 or command == "chat" or max(map(len, lines)) > 80
    assert not [line for line in lines if line.endswith("-")]
    assert "\u2011" not in told


def test_the_list_of_commands_cuts_none_short() -> None:
    told = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    assert "..." not in told.partition("Commands:")[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "words"),
    [("mlc-bridge bu", ["build"]), ("mlc-bridge verify --max-k", ["--max-kl"]),
     ("mlc-bridge build --quantization q4f16_auto", ["q4f16_autoawq", "q4f16_autoawq_g32"])],
)  # fmt: skip
def test_shells_complete(shell: str, typed: str, words: list[str]) -> None:
    """As the shell's own script asks; the script is what --show-completion prints."""
    runner, key = CliRunner(), "_MLC_BRIDGE_COMPLETE"
    script = runner.invoke(app, [], env={key: f"source_{shell}"}, prog_name="mlc-bridge").stdout
    assert f"{key}=complete_{shell}" in script
    asked = {
        key: f"complete_{shell}", "_TYPER_COMPLETE_ARGS": typed, "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")), "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    told = runner.invoke(app, [], env=asked, prog_name="mlc-bridge").stdout
    for word in words:
        assert re.search(rf"(^|\W){re.escape(word)}\b", told), told
    assert "doctor" not in told


def test_on_a_terminal_lines_end_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file every value stays on its line."""
    words = " ".join(["model.layers.0.self_attn.qkv_proj"] * 4)
    seen = {}
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=60, soft_wrap=True)
        monkeypatch.setattr(show, "console", console)
        show.rows("title", [("name", words)])
        show.notes((words,))
        show.table(("a", "b"), [("x", words)])
        seen[terminal] = re.sub(r"\x1b\[\d*m", "", out.getvalue()).splitlines()
    assert max(map(len, seen[True])) <= 60
    assert not [line for line in seen[True] if "model." in line and not line.endswith("qkv_proj")]
    assert len(seen[False]) == 5


def test_a_step_that_is_told_once_is_over_with_the_next() -> None:
    with progress.Bars(Console(file=io.StringIO(), force_terminal=True)) as bars:
        bars("graph", 0, 1)
        bars("compile", 3, 10)
        assert [task.completed for task in bars._progress.tasks] == [1, 3]

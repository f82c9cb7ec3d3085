"""The command line as a user meets it: exit codes, what goes to stdout, what is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from mlc_bridge.compiler import linker
from mlc_bridge.stages import doctor
from mlc_bridge.stages.bench import BenchJob
from mlc_bridge.stages.build import BuildJob
from mlc_bridge.stages.calibrate import CalibrateJob
from mlc_bridge.stages.compile import CompileJob
from mlc_bridge.stages.convert_weight import ConvertJob
from mlc_bridge.stages.gen_config import GenConfigJob
from mlc_bridge.stages.inspect_artifact import CheckJob
from mlc_bridge.stages.verify import VerifyJob

COMMAND = (sys.executable, "-W", "error", "-m", "mlc_bridge")


def run(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_gen_config_and_convert(example_awq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run("gen-config", example_awq, "--conv-template", "chatml", "-o", out)
    assert first.returncode == 0, first.stderr
    assert "q4f16_autoawq" in first.stdout
    second = run("convert-weight", example_awq, "--quantization", "q4f16_autoawq", "-o", out)
    assert second.returncode == 0, second.stderr
    index = json.loads((out / "tensor-cache.json").read_text())
    assert index["metadata"]["ParamSize"] == 87
    config = json.loads((out / "mlc-chat-config.json").read_text())
    assert config["mlc_bridge"] == index["metadata"]["mlc_bridge"]


def test_convert_works_on_a_checkpoint_alone(example_float: Path, tmp_path: Path) -> None:
    ran = run("convert", example_float, "--quantization", "q0f32", "-o", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "out/mlc-chat-config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gen-config", "nothing here", "-o", "o"), ("nothing here", "expected")),
        (("convert", "{model}", "--quantization", "q4f16", "-o", "o"), ("q4f16", "q4f16_autoawq")),
        (
            ("convert", "{model}", "--source-format", "awq", "-o", "o"),
            ("wanted format awq", "no layer has .qweight"),
        ),
        (("gen-config", "{model}", "--conv-template", "x", "-o", "o"), ("'x'", "chatml")),
        (("compile", "{model}", "-o", "o/lib.so"), ("mlc-chat-config.json", "gen-config")),
        (("chat", "{model}", "--prompt", "hi"), ("mlc-chat-config.json", "gen-config")),
        (("build", "{model}"), ("output",)),
        (("build", "--config", "none.yml"), ("none.yml", "no such recipe")),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_2(
    example_float: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    ran = run(*(a.format(model=example_float) for a in arguments), cwd=tmp_path)
    assert ran.returncode == 2
    error = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in error[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["inspect", "check", "compile", "chat"])
def test_a_name_too_long_for_the_file_system_is_told(command: str) -> None:
    ran = run(command, "n" * 5000)
    assert ran.returncode == 2
    assert "File name too long" in ran.stderr
    assert len(ran.stderr) < 6000


@pytest.mark.parametrize("command", ["gen-config", "convert", "build"])
def test_backend_mlc_llm_says_what_to_install(
    example_float: Path, tmp_path: Path, command: str
) -> None:
    if importlib.util.find_spec("mlc_llm"):
        pytest.skip("MLC LLM is installed")
    flags = ("--backend", "mlc_llm", "--quantization", "q0f16", "-o", "out")
    if command != "convert":
        flags += ("--conv-template", "chatml")
    ran = run(command, example_float, *flags, cwd=tmp_path)
    assert ran.returncode == 2
    assert "mlc-llm-nightly" in ran.stderr
    assert list(tmp_path.iterdir()) == []
    assert run(command, example_float, *flags[2:], "--backend", "x", cwd=tmp_path).returncode == 2


def test_wrong_flags_are_exit_2() -> None:
    assert run("convert", "--no-such-flag").returncode == 2
    assert run("no-such-command").returncode == 2
    assert run("gen-config", "m", "-o", "o", "--max-batch-size", "many").returncode == 2


def test_traceback_only_when_asked_for(tmp_path: Path) -> None:
    assert "Traceback" not in run("gen-config", tmp_path, "-o", tmp_path / "o").stderr
    for place in (("--traceback", "gen-config"), ("gen-config", "--traceback")):
        ran = run(*place, tmp_path, "-o", tmp_path / "o")
        assert ran.returncode == 2
        assert "Traceback" in ran.stderr


def test_unexpected_errors_are_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    from mlc_bridge.cli.exits import guarded

    def broken() -> None:
        raise ZeroDivisionError("by design")

    with pytest.raises(SystemExit) as end:
        guarded(broken)()
    assert end.value.code == 1
    text = capsys.readouterr().err  # type: ignore[attr-defined]
    assert "ZeroDivisionError: by design" in text
    assert "--traceback" in text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_behind(
    example_awq: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Stopped while it compiles; the directory it works in is beside the output."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "build", str(example_awq), "-o", str(out), "--no-cache"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("compile"):
            break
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_output_is_plain_where_there_is_no_terminal(example_float: Path, tmp_path: Path) -> None:
    ran = run("gen-config", example_float, "-o", tmp_path / "out")
    assert "\x1b" not in ran.stdout + ran.stderr
    assert run("--version").stdout.startswith("mlc-bridge ")


def test_doctor_as_text_and_json() -> None:
    text = run("doctor")
    assert text.returncode == 0, text.stderr
    for word in ("apache-tvm", "cpu features", "linker", "memory free", "compile for this CPU"):
        assert word in text.stdout
    found = json.loads(run("doctor", "--json").stdout)
    versions = {p["name"]: p["version"] for p in found["packages"]}
    assert versions["apache-tvm"].startswith("0.27")
    assert all(a["works"] or a["todo"] for a in found["abilities"])


def test_doctor_asks_the_linkers_own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``compile`` links with: $CXX first, then the path, then the ziglang wheel."""
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(doctor, "_probe_tvm", lambda: {"llvm": True, "cuda": None, "threads": 1})
    monkeypatch.setenv("CXX", f"{compiler} -m64")
    assert doctor.examine().machine["linker"] == f"{compiler} -m64"
    monkeypatch.delenv("CXX")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for zig in (False, True):
        monkeypatch.setattr(linker.importlib.util, "find_spec", lambda _, found=zig: found or None)
        found = doctor.examine()
        compiles = next(a for a in found.abilities if a.name == "compile for this CPU")
        assert compiles.works is zig
        assert ("ziglang" in found.machine["linker"]) is zig
        assert zig or "pip install ziglang" in str(compiles.todo)


@pytest.mark.parametrize(
    ("command", "job"),
    [
        ("gen-config", GenConfigJob), ("convert", ConvertJob), ("compile", CompileJob),
        ("calibrate", CalibrateJob), ("build", BuildJob), ("check", CheckJob),
        ("verify", VerifyJob), ("bench", BenchJob),
    ],
)  # fmt: skip
def test_every_field_of_a_job_is_an_explained_flag(command: str, job: type) -> None:
    """The help of a command is its Job's: what it takes first is a checkpoint or an MLC directory,
    not the same words for both."""
    ran = run(command, "--help")
    assert ran.returncode == 0, ran.stderr
    shown = "".join(ran.stdout.split())  # lines break at hyphens too
    for name, hint in get_type_hints(job, include_extras=True).items():
        _, text = get_args(hint)
        assert "".join(text.split()) in shown, f"{job.__name__}.{name}"
    reads_checkpoint = command in ("gen-config", "convert", "build")
    assert ("Checkpoint:directory" in shown) is reads_checkpoint
    assert ("MLCmodeldirectory,its" in shown) is not reads_checkpoint


def test_the_source_directory_is_never_touched(example_awq: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(example_awq, model)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in model.iterdir()}
    for path in (*model.iterdir(), model):
        path.chmod(path.stat().st_mode & ~0o222)
    assert run("gen-config", model, "-o", tmp_path / "out").returncode == 0
    assert run("convert", model, "-o", tmp_path / "out").returncode == 0
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in model.iterdir()} == before
    model.chmod(0o755)


@pytest.mark.parametrize("where", ["after the model", "before the model", "at the end"])
def test_requantize_may_stand_alone(example_awq: Path, tmp_path: Path, where: str) -> None:
    """Bare it means every layer, wherever it stands; what that cost is shown."""
    out, scheme = ("-o", tmp_path / "out"), ("--quantization", "q4f16_1")
    given = {
        "after the model": (example_awq, "--requantize", *out, *scheme),
        "before the model": ("--requantize", example_awq, *out, *scheme),
        "at the end": (*out, *scheme, example_awq, "--requantize"),
    }[where]
    ran = run("convert", *given)
    assert ran.returncode == 0, ran.stderr
    shown = ran.stdout.splitlines()
    assert "rounded into q4f16_1" in shown
    assert "  layers         24" in shown
    worst = shown[next(i for i, x in enumerate(shown) if x.startswith("worst layers")) + 1]
    assert worst.startswith("model.layers.")


def test_requantize_by_name_and_as_json(example_awq: Path, tmp_path: Path) -> None:
    """Every rounded layer stands in the JSON; layers that were not named stay exact or refuse."""
    wish = ("--quantization", "q0f16", "--json", "-o", tmp_path / "out")
    names = "o_proj,model.layers.[0-9].mlp.*,qkv_proj"
    ran = run("convert", example_awq, "--requantize", names, *wish)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert len(report["requantized"]) == 24
    assert set(report["requantized"][0]) == {"layer", "max", "rms", "cosine", "relative"}
    assert report["checkpoint_nbytes"] < report["nbytes"]
    some = run("convert", example_awq, "--requantize", "o_proj", *wish)
    assert some.returncode == 2
    assert "qkv_proj: q0f16 cannot hold" in some.stderr
    wrong = run("convert", example_awq, "--requantize", "head", *wish)
    assert wrong.returncode == 2
    assert "'head'" in wrong.stderr

"""build: three stages in one go, published as one directory or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlc_bridge import BuildJob, MLCEngine, build
from mlc_bridge.artifact.chat_config import CONFIG_NAME
from mlc_bridge.artifact.inventory import INDEX, INVENTORY
from mlc_bridge.artifact.workspace import WORK
from mlc_bridge.errors import (
    ArtifactError,
    BridgeError,
    CompileError,
    ConfigError,
    MissingDependency,
    SourceError,
)
from mlc_bridge.stages import build as stage
from mlc_bridge.stages.build import BuildPlan, BuildReport


@pytest.fixture(scope="module")
def plans() -> list[BuildPlan]:
    return []


@pytest.fixture(scope="module")
def built(
    example_awq: Path, tmp_path_factory: pytest.TempPathFactory, plans: list[BuildPlan]
) -> BuildReport:
    output = tmp_path_factory.mktemp("build") / "model"
    return build(BuildJob(example_awq, output), announce=plans.append)


def test_the_directory_is_complete(built: BuildReport) -> None:
    names = {path.name for path in built.output.iterdir()}
    assert {CONFIG_NAME, "tensor-cache.json", "lib.so", "tokenizer.json"} <= names
    assert [p.name for p in built.output.parent.iterdir()] == ["model"]
    assert built.config.config.fingerprint == built.convert.fingerprint == built.compile.fingerprint


def test_the_plan_was_right(built: BuildReport, plans: list[BuildPlan]) -> None:
    assert plans == [built.plan]
    assert built.plan.nbytes == built.convert.nbytes
    assert built.plan.n_params == built.convert.n_params == 87
    assert built.plan.bits_per_weight == pytest.approx(built.convert.bits_per_weight)
    shards = sum(p.stat().st_size for p in built.output.glob("params_shard_*.bin"))
    assert shards == built.plan.nbytes
    assert set(built.times) == {"gen-config", "convert", "compile"}


def test_the_model_answers(built: BuildReport) -> None:
    with MLCEngine(built.output) as engine:
        answer = engine.chat.completions.create(
            messages=[
                {"role": "user", "content": "Write a Python function that adds two numbers."}
            ],
            max_tokens=48,
            temperature=0,
        )
        text = str(answer.choices[0].message.content)
    assert "def " in text
    assert "two numbers" in text


@pytest.mark.parametrize("step", ["convert_weight", "compile_model"])
@pytest.mark.parametrize(
    "error", [SourceError("by design"), KeyboardInterrupt(), OSError(28, "full")]
)
def test_failure_in_the_middle_leaves_the_output_as_it_was(
    example_awq: Path,
    built: BuildReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage, step, fail)
    old = tmp_path / "old"
    shutil.copytree(built.output, old)
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    for output in (old, tmp_path / "fresh"):
        with pytest.raises(type(error)):
            build(BuildJob(example_awq, output))
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_remains_of_a_killed_run_are_cleared(example_awq: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    (output / WORK / "more").mkdir(parents=True)
    (output / WORK / "half").write_text("")
    with stage._published(BuildJob(example_awq, output)) as work:
        assert list(work.iterdir()) == []
        (work / INDEX).write_text("{}")
    assert sorted(p.name for p in output.iterdir()) == [INVENTORY, INDEX]


def test_other_peoples_directories_are_not_overwritten(example_awq: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="not overwritten"):
        build(BuildJob(example_awq, tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_fp8_wants_data_before_the_work_starts(example_float: Path, tmp_path: Path) -> None:
    plans: list[BuildPlan] = []
    job = BuildJob(example_float, tmp_path / "out", "e4m3_e4m3_f16")
    with pytest.raises(ConfigError, match="--calibration-dataset"):
        build(job, announce=plans.append)
    assert not plans
    wrong = BuildJob(example_float, tmp_path / "out", "q0f16", calibration_dataset="data.json")
    with pytest.raises(ConfigError, match="no use"):
        build(wrong)
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_output_not_the_work_directory(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with (
        pytest.raises(ArtifactError, match="here") as error,
        stage._published(BuildJob(tmp_path, output)) as work,
    ):
        raise ArtifactError("here", where=work / "shard")
    assert str(error.value).startswith(str(output / "shard"))


def test_unwritable_output_is_said_before_the_work(example_awq: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BridgeError, match="cannot be written"):
        build(BuildJob(example_awq, tmp_path / "file" / "out"))


def test_what_compile_would_refuse_is_said_before_the_work(
    example_awq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Target, linker and compiler are looked for before the first file is written."""
    out = tmp_path / "out"
    with pytest.raises(CompileError, match="metal"):
        build(BuildJob(example_awq, out, target="metal"))
    monkeypatch.setattr(stage.check_toolchain.__globals__["importlib"].util, "find_spec", {}.get)
    with pytest.raises(MissingDependency, match="apache-tvm"):
        build(BuildJob(example_awq, out))
    monkeypatch.setenv("PATH", "")
    for variable in ("CXX", "CC"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(CompileError, match="no C compiler"):
        build(BuildJob(example_awq, out))
    assert not out.exists()

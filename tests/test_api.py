"""The Python API as a pipeline holds it: JSON and back, true paths, strict types, documented."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlc_bridge
from mlc_bridge import ArtifactError, BuildJob, BuildReport, ConfigError, Record, build, plan
from mlc_bridge.record import meanings

ROOT = Path(__file__).parents[1]
AWQ = ROOT / "examples/models/stdlib-llama-7m-awq"
RECORDS = [
    kind
    for name in mlc_bridge.__all__
    if dataclasses.is_dataclass(kind := getattr(mlc_bridge, name)) and issubclass(kind, Record)
]


def test_every_name_of_the_face_is_there() -> None:
    assert {"BridgeError", "Progress", "BuildPlan", "EngineConfig", "CheckReport", "plan"} <= set(
        mlc_bridge.__all__
    )
    for name in mlc_bridge.__all__:
        assert getattr(mlc_bridge, name) is not None


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlc_bridge; print([m for m in ('numpy','tvm','pydantic') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", RECORDS, ids=lambda k: k.__name__)
def test_every_field_says_what_it_means(kind: type[Record]) -> None:
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    assert set(meanings(kind)) == fields
    schema = kind.json_schema()
    assert set(schema["properties"]) == fields
    assert all(len(p["description"]) > 5 for p in schema["properties"].values())


def test_mlcs_arguments_of_the_engine(tmp_path: Path) -> None:
    """The same names as MLC LLM's, in its order; what has no effect says so."""
    for kind in (mlc_bridge.MLCEngine, mlc_bridge.AsyncMLCEngine):
        names = list(inspect.signature(kind).parameters)
        assert names[:6] == ["model", "device", "model_lib", "mode", "engine_config",
                             "enable_tracing"]  # fmt: skip
        with pytest.warns(UserWarning, match="no effect"), pytest.raises(ArtifactError):
            kind(tmp_path, enable_tracing=True)


def test_a_job_goes_through_json(tmp_path: Path) -> None:
    job = BuildJob("org/model", str(tmp_path), requantize="lm_head", max_batch_size=4)
    assert BuildJob.from_json(job.to_json()) == job
    with pytest.raises(ConfigError, match=r"BuildJob.max_batch_size"):
        BuildJob.from_json('{"model_dir": "m", "output": "o", "max_batch_size": "many"}')
    with pytest.raises(ConfigError, match="quantisation"):
        BuildJob.from_json('{"model_dir": "m", "output": "o", "quantisation": "q0f16"}')


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    out = tmp_path_factory.mktemp("api") / "out"
    return build(BuildJob(AWQ, out))


def test_every_path_of_a_report_exists(built: BuildReport) -> None:
    found = [p for p in _paths(json.loads(built.to_json())) if "/" in p and " " not in p]
    assert str(built.compile.path) in found
    for path in found:
        assert Path(path).exists(), path


def _paths(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [p for v in value.values() for p in _paths(v)]
    if isinstance(value, list):
        return [p for v in value for p in _paths(v)]
    return [value] if isinstance(value, str) and re.match(r"/\w", value) else []


def test_a_report_goes_through_json(built: BuildReport) -> None:
    text = built.to_json()
    again = BuildReport.from_json(text)
    assert again.to_json() == text
    assert again == built
    assert again.compile.path == built.compile.path


def test_plan_says_what_build_does(built: BuildReport, tmp_path: Path) -> None:
    job = BuildJob(AWQ, tmp_path / "none")
    found = plan(job)
    assert not (tmp_path / "none").exists()
    same = ("model_type", "source_format", "quantization", "n_params", "nbytes", "layers",
            "conv_template", "float_layers")  # fmt: skip
    assert [getattr(found, f) for f in same] == [getattr(built.plan, f) for f in same]
    assert sum(layer.nbytes for layer in found.layers) == found.nbytes == built.convert.nbytes
    assert {x.scheme for x in found.layers} == {"q4f16_autoawq", "q0f16"}
    assert found.seconds["convert"] > 0  # the build before was noted
    with pytest.raises(ConfigError, match=r"config\.json"):
        plan(dataclasses.replace(job, model_dir=tmp_path))


def test_stages_log_their_notes(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from mlc_bridge import GenConfigJob, gen_config

    with caplog.at_level(logging.INFO, logger="mlc_bridge"):
        report = gen_config(
            GenConfigJob(AWQ, tmp_path / "out", conv_template="chatml", max_batch_size=2)
        )
    assert {r.name for r in caplog.records} == {"mlc_bridge.stages.gen_config"}
    assert "max_batch_size=2" in caplog.records[0].message
    assert "done in" in caplog.records[-1].message
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert told == [f"gen_config: {note}" for note in report.notes]
    assert told


def test_the_pipeline_example_cancels_and_goes_on(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "examples/pipeline_in_python.py",
         AWQ, tmp_path / "out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "cancelled: convert" in ran.stderr
    assert "checks passed" in ran.stdout
    assert BuildReport.from_json((tmp_path / "out.json").read_text()).compile.path.is_file()


def test_examples_and_readme_pass_mypy_strict(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (tmp_path / "readme.py").write_text(
        "\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    )
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n"
        "[mypy-mlc_bridge.*,tir_schedules.*]\nfollow_imports = silent\n"  # as when installed
        "[mypy-mlc_llm.*]\nignore_missing_imports = True\n"
    )
    files = [*sorted((ROOT / "examples").glob("*.py")), tmp_path / "readme.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache",
         "--config-file", tmp_path / "mypy.ini", *files],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout

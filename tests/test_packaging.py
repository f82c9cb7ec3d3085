"""What is shipped: the source distribution, the images' steps, extras that the texts name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
STEPS = [
    shlex.split(line, comments=True)
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def test_every_extra_that_is_named_exists() -> None:
    texts = [ROOT / "README.md", ROOT / "Dockerfile", *(ROOT / "mlc_bridge").rglob("*.py")]
    named = {
        extra
        for path in texts
        for found in re.findall(r"(?:mlc-bridge|\.whl\)|'\.)\[([\w,]+)\]", path.read_text("utf-8"))
        for extra in found.split(",")
    }
    assert named >= {"tvm", "torch", "serve", "all", "tokenizers"}
    assert named <= set(EXTRAS)
    (everything,) = EXTRAS["all"]
    assert set(everything[len("mlc-bridge[") : -1].split(",")) == set(EXTRAS) - {
        "all",
        "dev",
        "cross",  # a whole toolchain, for other machines
        "mlc",  # never together with tvm
    }


def test_core_dependencies_are_all_imported() -> None:
    names = {"pyyaml": "yaml", "huggingface_hub": "huggingface_hub"}
    sources = "\n".join(p.read_text("utf-8") for p in (ROOT / "mlc_bridge").rglob("*.py"))
    for need in PROJECT["dependencies"]:
        name = re.split(r"[<>=]", need)[0]
        module = names.get(name, name)
        assert re.search(rf"^\s*(import|from) {module}\b", sources, re.MULTILINE), name


def test_images_are_made_of_what_is_there() -> None:
    stages = [step[3] for step in STEPS if step[0] == "FROM"]
    assert stages == ["sources", "runtime", "build"]
    ignored = set((ROOT / ".dockerignore").read_text().split())
    for step in STEPS:
        if step[0] == "FROM" and ":" not in step[1]:
            assert step[1] in stages
        if step[0] == "COPY" and step[1].startswith("--from="):
            assert step[1].removeprefix("--from=") in stages
        elif step[0] == "COPY":
            for name in step[1:-1]:
                assert (ROOT / name).exists(), name
                assert name not in ignored
    copied = {n.removeprefix("./") for s in STEPS if s[0] == "COPY" for n in s[1:-1]}
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= copied
    version = re.search(r":(3\.\d+)", next(s[1] for s in STEPS if s[0] == "FROM"))
    assert version
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]
    entry = next(step for step in STEPS if step[0] == "ENTRYPOINT")
    assert entry[1].strip("[]") in PROJECT["scripts"]
    assert [s[1] for s in STEPS if s[0] == "USER"][-1] != "root"


def test_the_source_distribution_is_complete(tmp_path: Path) -> None:
    """Every file of the repository that a build, a test or a reader needs."""
    pytest.importorskip("setuptools")
    copy = tmp_path / "copy"
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not listed:
        pytest.skip("no git repository")
    wanted = [n for n in listed if (ROOT / n).is_file() and n != ".gitignore"]
    for name in wanted:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ROOT / name)
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    missing = [n for n in wanted if n not in packed and not n.startswith("cases_out/")]
    assert missing == []
    _wheel_works(next(tmp_path.glob("mlc_bridge-*/")), tmp_path, wanted)


def _wheel_works(unpacked: Path, tmp_path: Path, tracked: list[str]) -> None:
    """The wheel made of the source distribution holds all of the packages and runs by itself."""
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    installed = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    packages = tuple(f"{p.name}/" for p in installed.iterdir() if (p / "__init__.py").exists())
    assert set(packages) == {"mlc_bridge/", "tir_schedules/"}
    lost = [n for n in tracked if n.startswith(packages) and not (installed / n).exists()]
    assert lost == []
    model = ROOT / "examples/models/stdlib-llama-7m-awq"
    for words, said in (
        (["-c", "import mlc_bridge; print(mlc_bridge.__file__)"], str(installed)),
        (["-m", "mlc_bridge", "gen-config", str(model), "-o", "out"], "chatml"),
    ):
        ran = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(installed)},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert said in ran.stdout

"""One folder with all that `run` needs on a machine without a compiler."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import SUITES, Case

ROOT = Path(__file__).resolve().parents[2]
OURS = ("mlc_bridge", "tir_schedules", "benchmarks")
LEFT_OUT = (
    *("libtvm_compiler*", "3rdparty", "include", "cython", "tflite", "libbacktrace", "topi"),
    *("*.pyc", "__pycache__", "*.pyi", "*.h", "*.c"),
)
THERE = ("numpy", "tokenizers", "huggingface_hub", "typer", "rich")  # beside any transformers
NEEDED = (  # by those of the project's own requirements that come along
    *("apache-tvm-ffi", "pydantic-core", "annotated-types", "typing-inspection"),
    *("typing-extensions", "markupsafe"),
)
SCRIPT = """#!/bin/sh
# Checks and measures everything in this folder; the result is measured.json.
cd "$(dirname "$0")" && export PYTHONPATH="$PWD/site"
exec "${PYTHON:-python3.12}" -m benchmarks.gpu run . "$@"
"""


def pack_folder(options: argparse.Namespace) -> None:
    """Compile, then gather; what is there already is kept, so that `pack` can go on."""
    folder: Path = options.folder
    cases = [c for c in SUITES[options.suite] if options.only in c.name]
    archs = options.target or ["sm_90a"]
    for arch in archs:
        for case in cases:
            variants = compile_case(case, arch, folder / "libs" / arch)
            print(f"{arch} {case.name}: {', '.join(variants)}", flush=True)
    for given in options.model:
        name, _, artifact = given.partition("=")
        pack_model(name, Path(artifact), folder / "models", archs)
    about = {"suite": options.suite, "archs": archs, "cases": [c.name for c in cases]}
    (folder / "packed.json").write_text(json.dumps(about, indent=1) + "\n")
    if not options.bare:
        gather(folder / "site")
    script = folder / "run"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


def compile_case(case: Case, arch: str, folder: Path) -> list[str]:
    """`CASE.so` with one function a variant, and `CASE.json` that says what each is."""
    import tvm

    from mlc_bridge.compiler.linker import link
    from mlc_bridge.compiler.target import choose_target

    library = folder / f"{slug(case)}.so"
    index = library.with_suffix(".json")
    if index.exists():
        return list(json.loads(index.read_text()))
    target = choose_target(target=arch)
    functions = case.functions(target)
    about = {
        name: {
            "function": f"variant_{i}",
            "predicted": case.predicted(name),
            "choice": case.choice(name),
        }
        for i, name in enumerate(functions)
    }
    names = {name: str(said["function"]) for name, said in about.items()}
    module = tvm.IRModule(
        {v: functions[name].with_attr("global_symbol", v) for name, v in names.items()}
    )
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        built = tvm.compile(module, target=target)
    folder.mkdir(parents=True, exist_ok=True)
    built.export_library(str(library), fcompile=link)
    index.write_text(json.dumps(about))
    return list(names)


def slug(case: Case) -> str:
    """The case's file name."""
    return case.name.replace(" ", "_").replace("/", "-")


def pack_model(name: str, artifact: Path, folder: Path, archs: list[str]) -> None:
    """The model with a lib for each architecture and what a CPU's lib answers."""
    from benchmarks.gpu.model import answers
    from mlc_bridge.stages.compile import CompileJob, compile_model

    place = folder / name
    if not (place / "expected.npz").exists():
        shutil.copytree(artifact, place, dirs_exist_ok=True)
        cpu = place / "lib.so"
        if not cpu.exists():
            compile_model(CompileJob(place, cpu))
        answers(place, cpu, "cpu", place / "expected.npz")
        cpu.unlink()
    for arch in archs:
        lib = place / f"{arch}.so"
        if not lib.exists():
            compile_model(CompileJob(place, lib, target=arch))


def gather(site: Path) -> None:
    """The runtime half of tvm, wheels for Python 3.12 and this project."""
    import tvm

    site.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    source = Path(tvm.__file__).parent
    shutil.copytree(source, site / "tvm", ignore=ignore, dirs_exist_ok=True)
    for info in source.parent.glob("apache_tvm-*.dist-info"):
        shutil.copytree(info, site / info.name, dirs_exist_ok=True)
    for ours in OURS:
        shutil.copytree(ROOT / ours, site / ours, ignore=ignore, dirs_exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), "--upgrade"]
    options = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    platforms = ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]
    subprocess.run([*command, *options, *platforms, "--no-deps", *_wheels()], check=True)
    for left in LEFT_OUT[1:]:
        for path in [*site.rglob(left)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _wheels() -> list[str]:
    """The project's requirements, but for what is there, in this environment's versions."""
    names = [re.split(r"[ <>=;\[]", r)[0] for r in requires("mlc-bridge") or () if "extra" not in r]
    ours = [name for name in names if name not in THERE]
    return [f"{name}=={version(name)}" for name in (*ours, *NEEDED)]


def read_index(library: Path) -> dict[str, Any]:
    """Variant -> function, prediction and choice."""
    found: dict[str, Any] = json.loads(library.with_suffix(".json").read_text())
    return found

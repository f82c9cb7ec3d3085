"""``doctor``: what is installed, what this machine has, what therefore works, what to install.

Asks package metadata first, and runs tvm only in a process of its own: a broken or doubled
installation can crash on import, which is just what this command has to explain.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from mlc_bridge.compiler.linker import find_linker
from mlc_bridge.errors import CompileError
from mlc_bridge.record import Record

MODULES = {  # distribution names that ship the module
    "apache-tvm": ("apache-tvm",),
    "mlc-llm": ("mlc-llm", "mlc-llm-cpu", "mlc-llm-nightly", "mlc-llm-nightly-cpu"),
    "mlc-ai (tvm)": ("mlc-ai", "mlc-ai-cpu", "mlc-ai-nightly", "mlc-ai-nightly-cpu"),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "starlette": ("starlette",),
    "uvicorn": ("uvicorn",),
    "xgrammar": ("xgrammar",),
}
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd")
MLC_INSTALL = (
    "in an environment without apache-tvm: "
    "pip install --pre -f https://mlc.ai/wheels mlc-llm-nightly-cpu mlc-ai-nightly-cpu"
)
PROBE = """
import json, tvm
cuda = tvm.cuda(0)
print(json.dumps({"version": tvm.__version__, "cuda": cuda.device_name if cuda.exist else None,
  "llvm": bool(tvm.get_global_func("target.build.llvm", allow_missing=True)),
  "nvptx or cuda code": bool(tvm.get_global_func("target.build.cuda", allow_missing=True)),
  "threads": tvm.get_global_func("runtime.NumThreads")()}))
"""


@dataclass(frozen=True)
class Package(Record):
    name: Annotated[str, "Package."]
    version: Annotated[str | None, "Its version; none where it is not installed."]


@dataclass(frozen=True)
class Ability(Record):
    """Something mlc-bridge does; ``todo`` says what to install where it does not work."""

    name: Annotated[str, "What it is."]
    works: Annotated[bool, "Whether it works here."]
    todo: Annotated[str | None, "What to do where it does not."] = None


@dataclass(frozen=True)
class Diagnosis(Record):
    packages: Annotated[tuple[Package, ...], "Packages of interest."]
    machine: Annotated[dict[str, str], "What the machine has."]
    devices: Annotated[dict[str, str], "What TVM finds."]
    abilities: Annotated[tuple[Ability, ...], "What works."]
    conflicts: Annotated[tuple[str, ...], "What is wrong with the installation."]


def examine() -> Diagnosis:
    """Look at this installation and machine; never raises for what it finds."""
    packages = [_package("mlc-bridge", ("mlc-bridge",))]
    packages += [_package(name, names) for name, names in MODULES.items()]
    known = {p.name: p.version for p in packages}
    tvm = _probe_tvm() if known["apache-tvm"] or known["mlc-ai (tvm)"] else {}
    linker, no_linker = _linker()
    return Diagnosis(
        tuple(packages),
        _machine(linker),
        _devices(tvm),
        tuple(_abilities(known, tvm, no_linker)),
        tuple(_conflicts(known, tvm)),
    )


def _linker() -> tuple[str | None, str | None]:
    """The command that ``compile`` links with, or what to do where there is none."""
    try:
        return " ".join(find_linker()), None
    except CompileError as none:
        return None, none.todo


def _package(name: str, distributions: tuple[str, ...]) -> Package:
    for distribution in distributions:
        try:
            return Package(name, version(distribution))
        except PackageNotFoundError:
            continue
    return Package(name, None)


def _probe_tvm() -> dict[str, Any]:
    """What tvm says of itself, or {"error": its last line}."""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": "importing tvm takes longer than two minutes"}
    if ran.returncode == 0:
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
        return found
    lines = ran.stderr.strip().splitlines()
    return {"error": lines[-1] if lines else f"exit code {ran.returncode}"}


def _machine(linker: str | None) -> dict[str, str]:
    disk = shutil.disk_usage(Path.cwd())
    flags = _cpu_flags()
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu features": " ".join(f for f in FLAGS if f in flags) or "unknown",
        "AMX": "yes" if {"amx_tile", "amx_bf16"} <= flags else "no (bfloat16 by AVX-512 or AVX2)",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                     else os.cpu_count()),
        "memory free": _memory(),
        "disk free here": f"{disk.free / 1e9:.1f} GB",
        "linker": linker or "none found",
    }  # fmt: skip


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return set(next(lines, "").partition(":")[2].split())


def _memory() -> str:
    info = Path("/proc/meminfo")
    if not info.is_file():
        return "unknown"
    values = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    free, total = (int(values[k].split()[0]) * 1024 for k in ("MemAvailable", "MemTotal"))
    return f"{free / 1e9:.1f} of {total / 1e9:.1f} GB"


def _devices(tvm: dict[str, Any]) -> dict[str, str]:
    if not tvm or "error" in tvm:
        return {"tvm": tvm.get("error", "not installed")}
    return {
        "cpu": "compiles (LLVM)" if tvm["llvm"] else "this tvm has no LLVM",
        "cuda": tvm["cuda"] or "no device",
        "tvm's own thread pool": f"{tvm['threads']} threads (the engine sets the right number)",
    }


def _abilities(
    known: dict[str, str | None], tvm: dict[str, Any], no_linker: str | None
) -> list[Ability]:
    runs = bool(tvm) and "error" not in tvm
    install = "pip install 'mlc-bridge[tvm]'" if not tvm else tvm.get("error")
    compiles = runs and bool(tvm["llvm"])
    serves = bool(known["starlette"] and known["uvicorn"])
    return [
        Ability("gen-config, convert, inspect", True),
        Ability(
            "compile for this CPU",
            compiles and no_linker is None,
            no_linker if compiles else install,
        ),
        Ability("chat", runs, None if runs else install),
        Ability("serve", runs and serves, install if not runs else _extra("serve", serves)),
        Ability("answers by JSON schema", *_with("structured", bool(known["xgrammar"]))),
        Ability(
            "run on a CUDA device",
            runs and bool(tvm["cuda"]),
            None if runs and tvm["cuda"] else "an NVIDIA device and driver",
        ),
        Ability(
            "verify against Hugging Face",
            *_with("torch", bool(known["torch"] and known["transformers"])),
        ),
        Ability(
            "--backend mlc_llm",
            bool(known["mlc-llm"]),
            None if known["mlc-llm"] else MLC_INSTALL,
        ),
    ]


def _with(extra: str, there: bool) -> tuple[bool, str | None]:
    """Whether an extra's packages are there, and how they come."""
    return there, _extra(extra, there)


def _extra(extra: str, there: bool) -> str | None:
    return None if there else f"pip install 'mlc-bridge[{extra}]'"


def _conflicts(known: dict[str, str | None], tvm: dict[str, Any]) -> list[str]:
    found = []
    if known["apache-tvm"] and known["mlc-ai (tvm)"]:
        found.append(
            "apache-tvm and mlc-ai are both installed and overwrite each other's module tvm: "
            "uninstall both, then install one"
        )
    if known["apache-tvm"] and not known["apache-tvm"].startswith("0.27"):
        found.append(f"apache-tvm {known['apache-tvm']} is not the tested 0.27 line")
    if "error" in tvm:
        found.append(f"tvm is installed but does not start: {tvm['error']}")
    return found

"""Linking: which compiler is taken, and what is said when there is none or it fails."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from mlc_bridge.compiler import linker
from mlc_bridge.compiler.target import cross_machine, target_options
from mlc_bridge.errors import CompileError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with an empty path."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CXX", "CC"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def program(where: Path, name: str, script: str = "exit 0") -> Path:
    path = where / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_first_compiler_on_the_path(bare: Path) -> None:
    program(bare, "cc")
    program(bare, "clang++")
    assert linker.find_linker() == [str(bare / "clang++")]


def test_named_compiler_wins(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare, "g++")
    program(bare, "mine")
    monkeypatch.setenv("CXX", "mine -m64")
    assert linker.find_linker() == ["mine", "-m64"]


def test_zig_from_pip(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: object())
    assert linker.find_linker() == [sys.executable, "-m", "ziglang", "c++"]


def test_another_machine_is_zigs(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own compilers know only this one."""
    program(bare, "g++")
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    machine = cross_machine(target_options(target=f"llvm -mtriple={other}-unknown-linux-gnu"))
    assert machine == f"{other}-linux-gnu.2.28"
    own = f"llvm -mtriple={platform.machine()}-unknown-linux-gnu"
    assert cross_machine(target_options(target=own)) is None
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: object())
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", machine]
    assert linker.find_linker(machine) == zig
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match="another kind of machine"):
        linker.find_linker(machine)


def test_nothing_there(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match="pip install ziglang"):
        linker.find_linker()


def test_failure_is_told(bare: Path) -> None:
    program(bare, "g++", "echo 'cannot find -lfoo' >&2; exit 1")
    with pytest.raises(CompileError, match="cannot find -lfoo"):
        linker.link(str(bare / "a.so"), [])

"""Links object files to a shared library with whatever C compiler there is.

For another kind of machine it must be the ``ziglang`` wheel, which knows all of them.

First of ``$CXX``, ``$CC``, g++, clang++, c++, gcc, clang, cc on the path; else the ``ziglang``
wheel, which brings a whole toolchain through pip; else an error that says what to install.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from mlc_bridge.errors import CompileError

COMPILERS = ("g++", "clang++", "c++", "gcc", "clang", "cc")


def find_linker(machine: str | None = None) -> list[str]:
    """The command that links, without its arguments. Raises CompileError when there is none.

    ``machine``: another than this one, in zig's words.
    """
    if machine is not None:
        return [*_zig(machine), "-target", machine]
    for variable in ("CXX", "CC"):
        named = os.environ.get(variable)
        if named and shutil.which(named.split()[0]):
            return named.split()
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    raise CompileError(
        "no C compiler found to link the library",
        expected=" or ".join(COMPILERS),
        todo="Install one (apt install g++), or get one through pip: pip install ziglang",
    )


def _zig(machine: str) -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        raise CompileError(
            "nothing here links a library for another kind of machine",
            found=machine,
            todo="pip install 'mlc-bridge[cross]' (ziglang), or compile on such a machine",
        )
    return [sys.executable, "-m", "ziglang", "c++"]


def link_for(machine: str | None) -> Callable[..., None]:
    """``link`` for another machine, with what TVM looks for on it."""
    linked = partial(link, machine=machine)
    linked.output_format = "so"  # type: ignore[attr-defined]
    return linked


def link(
    output: str,
    objects: Sequence[str],
    options: Sequence[str] | None = None,
    machine: str | None = None,
) -> None:
    """Link ``objects`` to the shared library ``output``; the signature that TVM's export calls."""
    command = [*find_linker(machine), "-shared", "-fPIC", "-o", output, *objects, *(options or ())]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CompileError(
            "linking failed",
            where=command[0],
            found=(result.stderr or result.stdout).strip()[-600:],
            todo="Check that this compiler can build a shared library",
        )


# Without it TVM asks for a tar of the objects instead of a linked file.
link.output_format = "so"  # type: ignore[attr-defined]

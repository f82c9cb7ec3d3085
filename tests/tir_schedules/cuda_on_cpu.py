"""Running the CUDA C that TVM prints on a CPU: `cuda_on_cpu.h` stands in for the GPU.

`Program(module, target)` builds a scheduled function for CUDA, takes its source, leaves out the
device functions that are PTX (the header has them under the same names) and compiles the rest as
C++. `run` then does what TVM's host code does: it walks the host side of the scheduled function,
decides its conditions by the number of rows and launches its kernels.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.s_tir import dlight

from tir_schedules import RULES
from tir_schedules.expression import rebuild

COMPILER = shutil.which("c++") or shutil.which("g++")
HEADER = Path(__file__).with_suffix(".h")
PRELUDE = (
    "#define ushort unsigned short\n#endif\n"  # the end of what TVM prints before every kernel
)
FUNCTION = re.compile(r"__device__ __forceinline__ [\w ]+? (\w+)\(.*?\) \{\n.*?\n\}\n", re.DOTALL)
KERNEL = re.compile(r'^extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\((.*)\) \{$', re.M)


def cuda_target(arch: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "cuda", "arch": arch, "host": {"kind": "llvm"}})


def schedule(func: tirx.PrimFunc, target: tvm.target.Target) -> tvm.IRModule:
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    with target:
        return dlight.ApplyDefaultSchedule(*RULES(target))(module)


def cuda_source(module: tvm.IRModule, target: tvm.target.Target) -> str:
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):  # as models are compiled
        library = tvm.compile(module, target=target)
    (device,) = getattr(library, "mod", library).imports
    return str(device.inspect_source())


class Program:
    """One scheduled function, compiled as C++ in `folder`."""

    def __init__(self, module: tvm.IRModule, target: tvm.target.Target, folder: Path) -> None:
        self.func = module["main"]
        source = cuda_source(module, target)
        self.kernels = [
            (name, [(*p.split()[:1], p.split()[-1]) for p in parameters.split(", ")])
            for name, parameters in KERNEL.findall(source)
        ]
        self.library = _compile(source, KERNEL.findall(source), folder, target)

    def run(self, arguments: Sequence[Any], backwards: bool = False) -> None:
        """Run on the function's arguments, arrays and numbers; sizes are read from the arrays."""
        _Host(self, backwards).call(arguments)


class _Host:
    """The host's part of one call: its names' values, decisions, workspaces and launches."""

    def __init__(self, program: Program, backwards: bool) -> None:
        self.program, self.backwards, self.number = program, backwards, 0
        self.arrays: dict[str, np.ndarray] = {}
        self.numbers: dict[str, float] = {}
        self.known: dict[Any, Any] = {}

    def call(self, arguments: Sequence[Any]) -> None:
        func = self.program.func
        for param, given in zip(func.params, arguments, strict=True):
            if isinstance(given, np.ndarray):
                self.arrays[f"{param.name}_ptr"] = given
                for extent, size in zip(param.shape, given.shape, strict=True):
                    if isinstance(extent, tirx.Var):
                        self.name(extent, size)
                self.numbers[f"{param.name}_offset"] = 0
            else:
                self.name(param, given)
        self.walk(func.body)

    def name(self, var: Any, value: float) -> None:
        kind = tirx.IntImm if isinstance(value, int) else tirx.FloatImm
        self.known[var], self.numbers[var.name] = kind(str(var.ty), value), value

    def walk(self, s: Any, taken: bool = True) -> None:
        kind = type(s).__name__
        if kind == "SBlockRealize":
            self.walk(s.block.body, taken)
        elif kind == "SeqStmt":
            for part in s.seq:
                self.walk(part, taken)
        elif kind == "IfThenElse":
            yes = bool(self.value(s.condition))
            self.walk(s.then_case, taken and yes)
            self.walk(s.else_case, taken and not yes)
        elif kind == "Bind":
            self.name(s.var, self.value(s.value))
        elif kind == "AllocBuffer":
            shape, dtype = [self.value(n) for n in s.buffer.shape], str(s.buffer.dtype)
            self.arrays[f"{s.buffer.name}_ptr"] = np.full(shape, np.nan, dtype)
        elif kind == "For":
            self.number += 1
            if taken:
                self.launch(s, self.number - 1)
        else:
            raise NotImplementedError(kind)

    def launch(self, loop: Any, number: int) -> None:
        extents = {}
        while type(loop).__name__ == "For" and loop.thread_binding is not None:
            extents[loop.thread_binding.thread_tag] = self.value(loop.extent)
            loop = loop.body
        sizes = [extents.get(f"{k}Idx.{a}", 1) for k in ("block", "thread") for a in "xyz"]
        name, parameters = self.program.kernels[number]
        arguments = [self.argument(*p) for p in parameters]
        launch = self.program.library[f"launch_{name}"]
        launch(*(ctypes.c_uint(v) for v in sizes), ctypes.c_int(self.backwards), *arguments)

    def argument(self, kind: str, name: str) -> Any:
        if name.endswith("_ptr"):
            return self.arrays[name].ctypes.data_as(ctypes.c_void_p)
        return (ctypes.c_float if kind == "float" else ctypes.c_int64)(self.numbers[name])

    def value(self, e: Any) -> int:
        return int(tvm.sym.Analyzer().simplify(rebuild(e, self.known)))


def _compile(
    source: str, kernels: list[tuple[str, str]], folder: Path, target: tvm.target.Target
) -> ctypes.CDLL:
    source = source.split(PRELUDE, 1)[1]
    source = FUNCTION.sub(lambda m: "" if "asm volatile" in m.group(0) else m.group(0), source)
    source = re.sub(r"__shared__ (alignas\(\d+\)) (?!uchar \w+\[\])", r"\1 static ", source)
    source = re.sub(r"extern __shared__ (alignas\(\d+\) )?uchar (\w+)\[\]", _dynamic, source)
    launchers = ""
    for name, parameters in kernels:
        names = ", ".join(p.split()[-1] for p in parameters.split(", "))
        launchers += (
            f'extern "C" void launch_{name}(unsigned gx, unsigned gy, unsigned gz, unsigned x, '
            f"unsigned y, unsigned z, int backwards, {parameters}) {{\n"
            "  cpu::launch({gx, gy, gz}, {x, y, z}, backwards, "
            f"[&] {{ {name}({names}); }});\n}}\n"
        )
    path = folder / "kernels.cc"
    path.write_text(f'#include "{HEADER}"\n{source}\n{launchers}')
    library = path.with_suffix(".so")
    command = [COMPILER, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fno-strict-aliasing"]
    arch = "".join(filter(str.isdigit, target.attrs["arch"]))
    command.append(f"-D__CUDA_ARCH__={arch}0")
    done = subprocess.run([*command, path, "-o", library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


def _dynamic(found: re.Match[str]) -> str:
    return f"static {found.group(1) or ''}unsigned char {found.group(2)}[200 << 10]"

"""Scheduled functions with every AMX instruction replaced by a call of `amx_emulator.c`.

The rule makes the function for a target with AMX; then each tile intrinsic, and the question to the
kernel, becomes an external C function, and the rest is compiled for this CPU. So everything but the
instructions themselves is what a CPU with AMX would run.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from linear_functions import TARGET, Layer, numpy_dtype
from tvm import ir, tirx
from tvm.ir.prim import expr as prim
from tvm.s_tir import dlight

from mlc_bridge.compiler.target import host_options, make_target
from tir_schedules import RULES

SOURCE = Path(__file__).with_name("amx_emulator.c")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
WORDS = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd64", "tilestored64", "tdpbf16ps")


def amx_target() -> tvm.target.Target:
    """This CPU and AMX."""
    options = host_options()
    features = {*options.get("mattr", []), "+amx-tile", "+amx-bf16"}
    return make_target({**options, "mattr": sorted(features)})


def scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` by the rules, for a target with AMX."""
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    target = amx_target()
    with target:
        return dlight.ApplyDefaultSchedule(*RULES(target))(module)["main"]


class Emulator:
    """The compiled C file, loaded so that compiled TVM functions find its symbols."""

    def __init__(self, folder: Path) -> None:
        library = folder / "amx_emulator.so"
        command = [COMPILER, "-O2", "-ftree-vectorize", "-march=native", "-fno-math-errno"]
        flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*command, *flags, str(SOURCE), "-o", str(library), "-lm"], check=True)
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.built: dict[str, tvm.runtime.Executable] = {}

    def count(self, name: str) -> int:
        """One of the emulator's counters."""
        return ctypes.c_int.in_dll(self.library, f"amx_{name}").value

    def set(self, **values: int) -> None:
        """Set counters."""
        for name, value in values.items():
            ctypes.c_int.in_dll(self.library, f"amx_{name}").value = value

    def fault(self) -> str | None:
        """What a CPU would have refused."""
        message = ctypes.c_char_p.in_dll(self.library, "amx_fault").value
        return message.decode() if message else None

    def forgive(self) -> None:
        """Forget the fault."""
        ctypes.c_char_p.in_dll(self.library, "amx_fault").value = None

    def run(self, layer: Layer) -> np.ndarray:
        """The layer's output from its emulated function."""
        key = layer.func.script()
        if key not in self.built:
            func = emulated(scheduled(layer.func))
            self.built[key] = tvm.compile(tvm.IRModule({"main": func}), target=TARGET)
        out = np.zeros(layer.expected.shape, numpy_dtype(layer.out_dtype))
        arguments = [tvm.runtime.tensor(a) for a in [*layer.inputs, out]]
        self.built[key]["main"](*arguments)
        return arguments[-1].numpy().astype(np.float64)

    def error(self, layer: Layer) -> float:
        """Largest difference over largest value, after a run that used tiles and broke no rule."""
        self.set(permitted=1, asked=0, configured=0, released=0, products=0)
        got = self.run(layer)
        assert self.fault() is None
        assert self.count("asked") == 1
        assert self.count("configured") == self.count("released") > 0
        assert self.count("products") > 0
        return float(np.abs(got - layer.expected).max() / np.abs(layer.expected).max())


def emulated(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with C functions in place of tile instructions and of the question to the kernel."""
    names = {tirx.call_llvm_intrin("void", f"llvm.x86.{w}").args[0].value: w for w in WORDS}

    def swap(call: ir.Call) -> ir.Call:
        first = call.args[0] if call.args else None
        if call.op.name == "tirx.call_llvm_intrin" and isinstance(first, prim.IntImm):
            word = names.get(first.value)
            if word is not None:
                return tirx.call_extern("int32", f"emulated_{word}", *call.args[1:])
        if call.op.name == "tirx.call_extern" and first.value == "syscall":
            return tirx.call_extern("int64", "emulated_syscall", *call.args[1:])
        return call

    return tvm_ffi.structural_map(func, (ir.Call, swap))

"""What to compile for: this machine's real CPU features, a named target, or a CUDA architecture.

LLVM's CPU name can lie under a hypervisor (it may call a machine by an older model's name while the
kernel lists avx512_bf16 or amx_tile), so the host target is generic ``x86-64`` or ``generic`` plus
the features that /proc/cpuinfo lists, translated to LLVM's spelling.

``--target`` takes ``llvm``, ``llvm -mcpu=znver4 -mattr=+avx2,+fma``, a JSON object as TVM writes
it, ``cuda -arch=sm_86`` or just ``sm_86``. What the library could not be built or linked for is
refused here, before TVM sees it: its own answer to ``metal`` is a crash of the process.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc_bridge.errors import CompileError

if TYPE_CHECKING:
    from tvm.target import Target

CPUINFO = Path("/proc/cpuinfo")

# TVM's kinds that end in no library here, and what its wheel does with them.
NOT_HERE = {
    "metal": "its code generator needs macOS",
    "webgpu": "a WebAssembly host part would be needed",
    "opencl": "the wheel's runtime has no OpenCL",
    "vulkan": "the wheel has no SPIR-V code generator",
    "rocm": "the wheel has no ROCm code generator",
}

# Other machines that the wheel ``ziglang`` links for, with the C library of TVM's own wheels.
CROSS = {"aarch64-linux": "aarch64-linux-gnu.2.28", "x86_64-linux": "x86_64-linux-gnu.2.28"}

# Kernel name -> LLVM name where they differ; all others of FEATURES are spelt alike.
RENAMED = {
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "bmi1": "bmi",
    "abm": "lzcnt",
    "pclmulqdq": "pclmul",
    "avx_vnni": "avxvnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_vnni": "avx512vnni",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "amx_tile": "amx-tile",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
}
X86_SAME = """
    ssse3 cx16 popcnt movbe aes avx f16c fma avx2 bmi2 gfni vaes vpclmulqdq
    avx512f avx512dq avx512cd avx512bw avx512vl avx512ifma avx512vbmi
"""
X86 = frozenset(X86_SAME.split()) | frozenset(RENAMED)
ARM = {
    "asimd": "neon",
    "asimdhp": "fullfp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "atomics": "lse",
}


def cpu_features(cpuinfo: str | None = None) -> list[str]:
    """LLVM feature names of this CPU, sorted; empty where /proc/cpuinfo does not exist."""
    if cpuinfo is None:
        cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    names = {RENAMED.get(f, f) for f in flags & X86} | {ARM[f] for f in flags & set(ARM)}
    return sorted(names)


def kernel_flags(options: Mapping[str, Any]) -> list[str]:
    """The /proc/cpuinfo names of the features that code for a target may use."""
    theirs = {RENAMED.get(flag, flag): flag for flag in X86} | {v: k for k, v in ARM.items()}
    wanted = {str(f)[1:] for f in options.get("mattr", ()) if str(f).startswith("+")}
    return sorted(flag for ours, flag in theirs.items() if ours in wanted)


def host_options() -> dict[str, Any]:
    """TVM's description of LLVM for this very machine."""
    features, machine = cpu_features(), _machine()
    options: dict[str, Any] = {"kind": "llvm", "num-cores": os.cpu_count() or 1}
    if platform.system() == "Linux":
        options["mtriple"] = f"{machine}-unknown-linux-gnu"
    if features:
        options["mcpu"] = "x86-64" if machine == "x86_64" else "generic"
        options["mattr"] = [f"+{name}" for name in features]
    if "avx512vnni" in features:
        # Tuning: else LLVM splits vpdpwssd into two instructions, a third more of them in the
        # 4-bit kernels.
        options["mattr"].append("+fast-dpwssd")
    return options


def target_options(device: str = "auto", target: str | None = None) -> dict[str, Any]:
    """TVM's description of ``--device`` (auto, cpu, cuda) or of ``--target``, which wins.

    Needs no tvm but for a CUDA device. Raises CompileError for what cannot be read or is not there.
    """
    if target is not None:
        return _written(target)
    if device in ("auto", "cpu"):
        return host_options()
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise CompileError("unknown device", found=repr(device), expected="auto, cpu or cuda")
    return _written(f"cuda -arch={_cuda_arch(int(number or 0))}")


def check_host(triple: str) -> None:
    """Raise CompileError for a machine that nothing can be linked for here (``--host``)."""
    if triple != "auto" and not _is_here(triple) and _cross(triple) is None:
        raise _other_machine("--host", triple)


def cross_machine(options: Mapping[str, Any]) -> str | None:
    """The other machine that a target's library is for, in zig's words; None for this one."""
    host = options if options["kind"] == "llvm" else options.get("host")
    triple = host.get("mtriple") if isinstance(host, Mapping) else None
    return None if triple is None or _is_here(str(triple)) else _cross(str(triple))


def make_target(options: Mapping[str, Any]) -> Target:
    """The TVM target; what TVM does not know is a CompileError."""
    from tvm.target import Target

    try:
        return Target(dict(options))
    except Exception as error:
        raise _unusable(json.dumps(options), error) from error


def host_target() -> Target:
    """LLVM for this very machine."""
    return make_target(host_options())


def choose_target(device: str = "auto", target: str | None = None) -> Target:
    """The target of ``--device`` or of ``--target``, which wins."""
    return make_target(target_options(device, target))


def _cuda_arch(index: int) -> str:
    import tvm

    device = tvm.device("cuda", index)
    if not device.exist:
        raise CompileError(
            "no CUDA device here to compile for",
            found=f"cuda:{index}",
            todo="Name the GPU's architecture with --target, as in --target 'cuda -arch=sm_86'",
        )
    return "sm_" + device.compute_version.replace(".", "")


def _written(text: str) -> dict[str, Any]:
    try:
        options = _options(text.strip())
        if options["kind"] == "cuda":
            options.setdefault("host", host_options())
    except Exception as error:
        raise _unusable(text, error) from error
    _check_supported(options)
    return options


def _check_supported(options: Mapping[str, Any]) -> None:
    """A kind that can be compiled, and host code that this machine's linker takes."""
    kind = str(options["kind"])
    if kind not in ("llvm", "cuda"):
        raise CompileError(
            "this kind of target is not supported",
            where="--target",
            found=f"{kind} ({NOT_HERE[kind]})" if kind in NOT_HERE else kind,
            expected="llvm (this kind of CPU) or cuda",
        )
    host = options if kind == "llvm" else options["host"]
    triple = host.get("mtriple") if isinstance(host, Mapping) else None
    if triple is not None and not _is_here(str(triple)) and _cross(str(triple)) is None:
        raise _other_machine("--target", f"mtriple {triple}")


def _other_machine(where: str, found: str) -> CompileError:
    return CompileError(
        "a library for another kind of machine cannot be linked here",
        where=where,
        found=found,
        expected=f"{_machine()}-*-{platform.system().lower()}-*, {' or '.join(CROSS)}",
        todo="Compile on such a machine; the model directory itself runs anywhere",
    )


def _is_here(triple: str) -> bool:
    arch, *rest = _parts(triple)
    system = {"darwin": ("darwin", "macos")}.get(platform.system().lower(), ("linux",))
    return arch == _machine() and any(
        part.startswith(system) for part in rest if "android" not in rest
    )


def _cross(triple: str) -> str | None:
    """What zig calls a triple that it can link for and that TVM's wheels exist for."""
    arch, *rest = _parts(triple)
    known = "linux" in rest and not {"android", "musl"} & set(rest)
    return CROSS.get(f"{arch}-linux") if known else None


def _parts(triple: str) -> list[str]:
    arch, *rest = triple.lower().split("-")
    names = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}
    return [names.get(arch, arch), *rest]


def _machine() -> str:
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _unusable(text: str, error: Exception) -> CompileError:
    return CompileError(
        "this target cannot be used",
        where="--target",
        found=f"{text!r} ({(str(error).splitlines() or ['?'])[0][:160]})",
        expected="llvm, llvm -mcpu=NAME -mattr=+A,+B, cuda -arch=sm_NN, or TVM's JSON",
    )


def _options(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        return dict(json.loads(text))
    if re.fullmatch(r"sm_\d+[af]?", text):
        return {"kind": "cuda", "arch": text}
    kind, *flags = text.split()
    if kind == "llvm" and not flags:
        return host_options()
    options: dict[str, Any] = {"kind": kind}
    for flag in flags:
        name, equals, value = flag.lstrip("-").partition("=")
        if not equals:
            raise ValueError(f"{flag} has no value")
        options[name] = value.split(",") if name == "mattr" else value
        if value.isdigit():
            options[name] = int(value)
    return options

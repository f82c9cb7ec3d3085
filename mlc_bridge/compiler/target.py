"""What to compile for: this machine's real CPU features, a named target, or a CUDA architecture.

LLVM's CPU name can lie under a hypervisor (it may call a machine by an older model's name while the
kernel lists avx512_bf16 or amx_tile), so the host target is generic ``x86-64`` or ``generic`` plus
the features that /proc/cpuinfo lists, translated to LLVM's spelling.

``--target`` takes ``llvm``, ``llvm -mcpu=znver4 -mattr=+avx2,+fma``, a JSON object as TVM writes
it, ``cuda -arch=sm_86`` or just ``sm_86``.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from tvm.target import Target

from mlc_bridge.errors import CompileError

CPUINFO = Path("/proc/cpuinfo")

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


def kernel_flags(target: Target) -> list[str]:
    """The /proc/cpuinfo names of the features that code for ``target`` may use."""
    theirs = {RENAMED.get(flag, flag): flag for flag in X86} | {v: k for k, v in ARM.items()}
    wanted = {str(f)[1:] for f in target.attrs.get("mattr", ()) if str(f).startswith("+")}
    return sorted(flag for ours, flag in theirs.items() if ours in wanted)


def host_target() -> Target:
    """LLVM for this very machine."""
    features = cpu_features()
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
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
    return Target(options)


def choose_target(device: str = "auto", target: str | None = None) -> Target:
    """The target of ``--device`` (auto, cpu, cuda) or of ``--target``, which wins.

    Raises CompileError for a target that cannot be read or a device that is not there.
    """
    if target is not None:
        return _parse(target)
    if device in ("auto", "cpu"):
        return host_target()
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise CompileError("unknown device", found=repr(device), expected="auto, cpu or cuda")
    return _parse(f"cuda -arch={_cuda_arch(int(number or 0))}")


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


def _parse(text: str) -> Target:
    try:
        options = _options(text.strip())
        if options.get("kind") == "cuda":
            options.setdefault("host", json.loads(str(host_target())))
        return Target(options)
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(
            "this target cannot be used",
            where="--target",
            found=f"{text!r} ({str(error).splitlines()[0][:160]})",
            expected="llvm, llvm -mcpu=NAME -mattr=+A,+B, cuda -arch=sm_NN, or TVM's JSON",
        ) from error


def _options(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        return dict(json.loads(text))
    if re.fullmatch(r"sm_\d+[af]?", text):
        return {"kind": "cuda", "arch": text}
    kind, *flags = text.split()
    if kind == "llvm" and not flags:
        return json.loads(str(host_target()))
    options: dict[str, Any] = {"kind": kind}
    for flag in flags:
        name, equals, value = flag.lstrip("-").partition("=")
        if not equals:
            raise ValueError(f"{flag} has no value")
        options[name] = value.split(",") if name == "mattr" else value
        if value.isdigit():
            options[name] = int(value)
    return options

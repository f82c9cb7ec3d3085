"""Targets: real CPU features, and what --target understands."""

from __future__ import annotations

import json

import pytest

from mlc_bridge.compiler.target import (
    choose_target,
    cpu_features,
    host_target,
    kernel_flags,
    target_options,
)
from mlc_bridge.errors import CompileError

INTEL = (
    "flags\t\t: fpu sse4_1 sse4_2 avx2 fma f16c avx512f avx512_bf16 amx_tile amx_bf16 hypervisor\n"
)
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp i8mm bf16 sve cpuid\n"


def test_x86_flags_become_llvm_features() -> None:
    assert cpu_features(INTEL) == [
        "amx-bf16", "amx-tile", "avx2", "avx512bf16", "avx512f", "f16c", "fma", "sse4.1", "sse4.2",
    ]  # fmt: skip


def test_arm_features() -> None:
    assert cpu_features(GRAVITON) == ["bf16", "dotprod", "fullfp16", "i8mm", "neon", "sve"]


def test_no_cpuinfo_no_features() -> None:
    assert cpu_features("") == []


def test_llvm_knows_every_feature() -> None:
    from tvm.target.codegen import llvm_get_cpu_features

    target = host_target()
    known = {str(name) for name in llvm_get_cpu_features(target)}
    assert {str(f)[1:] for f in target.attrs["mattr"]} <= known


def test_kernel_flags_are_those_of_cpuinfo() -> None:
    wide = "llvm -mcpu=x86-64 -mattr=+avx2,+avx512bf16,+sse4.1,+fast-dpwssd"
    assert kernel_flags(target_options(target=wide)) == ["avx2", "avx512_bf16", "sse4_1"]
    assert kernel_flags(target_options(target="sm_80")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llvm -mcpu=x86-64-v3", {"kind": "llvm", "mcpu": "x86-64-v3"}),
        ("llvm -num-cores=4", {"kind": "llvm", "num-cores": 4}),
        ('{"kind": "llvm", "mcpu": "znver4"}', {"kind": "llvm", "mcpu": "znver4"}),
        ("cuda -arch=sm_86", {"kind": "cuda", "arch": "sm_86"}),
        ("sm_90a", {"kind": "cuda", "arch": "sm_90a"}),
    ],
)
def test_written_targets(text: str, expected: dict[str, object]) -> None:
    found = json.loads(str(choose_target(target=text)))
    assert {key: found[key] for key in expected} == expected


def test_cuda_runs_its_host_code_here() -> None:
    host = choose_target(target="sm_80").host
    assert host is not None
    assert host.kind.name == "llvm"


@pytest.mark.parametrize("text", ["", "llwm", "llvm -mcpu", "llvm -bogus=1", "{", "sm_x"])
def test_unreadable_targets_are_refused(text: str) -> None:
    with pytest.raises(CompileError, match="target"):
        choose_target(target=text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("metal", "macOS"),
        ("webgpu", "WebAssembly"),
        ("opencl", "OpenCL"),
        ("vulkan", "SPIR-V"),
        ("rocm", "ROCm"),
        ("hexagon", "not supported"),
        ("llvm -mtriple=aarch64-linux-android", "linked here"),
        ("llvm -mtriple=x86_64-apple-darwin", "linked here"),
        ("llvm -mtriple=x86_64-pc-windows-msvc", "linked here"),
        ("llvm -mtriple=x86_64-linux-android", "linked here"),
        ('{"kind": "cuda", "arch": "sm_86", "host": {"kind": "llvm", "mtriple": "riscv64-linux"}}',
         "linked here"),
    ],
)  # fmt: skip
def test_what_would_end_in_no_library_is_refused_before_tvm(text: str, named: str) -> None:
    with pytest.raises(CompileError, match=named):
        target_options(target=text)


def test_unknown_device() -> None:
    with pytest.raises(CompileError, match="auto, cpu or cuda"):
        choose_target("tpu")

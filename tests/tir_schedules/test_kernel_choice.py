"""Which kernel a layer gets on which machine: the choice itself, not only that numbers are right.

A wrong choice computes the right numbers, an order of magnitude too slowly.
"""

from __future__ import annotations

from typing import Any

import pytest
from linear_functions import Layer, awq, dense, group4
from tvm.target import Target

from tir_schedules.cpu.linear import Linear
from tir_schedules.cpu.vector_unit import VectorUnit

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
TARGETS: dict[str, dict[str, Any]] = {
    "x86-64": {"mtriple": X86, "mcpu": "x86-64"},
    "x86-64-v3": {"mtriple": X86, "mcpu": "x86-64-v3"},
    "avx2": {"mtriple": X86, "mcpu": "x86-64", "mattr": ["+avx2", "+fma"]},
    "alderlake": {"mtriple": X86, "mcpu": "alderlake"},
    "x86-64-v4": {"mtriple": X86, "mcpu": "x86-64-v4"},
    "less": {"mtriple": X86, "mcpu": "x86-64-v4", "mattr": ["-avx512f"]},
    "icelake": {"mtriple": X86, "mcpu": "icelake-server"},
    "zen4": {"mtriple": X86, "mcpu": "znver4"},
    "sapphirerapids": {"mtriple": X86, "mcpu": "sapphirerapids"},
    "neon": {"mtriple": ARM, "mcpu": "neoverse-n1"},
}
LAYERS = {
    "q4f16_autoawq": awq(40, 1024, 1024, 128),
    "q4f16_1": group4(40, 1024, 1024),
    "q0f16": dense(40, 1024, 1024, "float16"),
    "q0bf16": dense(40, 1024, 1024, "bfloat16"),
}
FLOAT = {lanes: (f"float_gemv fma x{lanes}", f"gemm fma x{lanes}") for lanes in (8, 16)}
TILES = "bf16_gemm tdpbf16ps, where not permitted "
# target -> scheme -> kernels for one row and for many
CHOICES = {
    "x86-64": {"q4f16_autoawq": ("gemm fma x8", "gemm fma x8"), "q4f16_1": FLOAT[8]},
    "x86-64-v3": {
        "q4f16_autoawq": ("awq_gemv vpmaddwd x8", "int16_gemm vpmaddwd x8"),
        "q4f16_1": ("group4_gemv vpmaddwd x8", "int16_gemm vpmaddwd x8"),
        "q0f16": FLOAT[8],
        "q0bf16": FLOAT[8],
    },
    "alderlake": {
        "q4f16_autoawq": ("awq_gemv vpmaddwd x8", "int16_gemm vpdpwssd x8"),
        "q4f16_1": ("group4_gemv vpdpwssd x8", "int16_gemm vpdpwssd x8"),
    },
    "x86-64-v4": {
        "q4f16_autoawq": ("awq_gemv vpmaddwd x16", "int16_gemm vpmaddwd x16"),
        "q4f16_1": ("group4_gemv vpmaddwd x16", "int16_gemm vpmaddwd x16"),
        "q0f16": FLOAT[16],
        "q0bf16": FLOAT[16],
    },
    "icelake": {
        "q4f16_autoawq": ("awq_gemv vpdpbusd x16", "int16_gemm vpdpwssd x16"),
        "q4f16_1": ("group4_gemv vpdpwssd x16", "int16_gemm vpdpwssd x16"),
        "q0bf16": FLOAT[16],
    },
    "zen4": {
        "q4f16_autoawq": ("awq_gemv vpdpbusd x16", "int16_gemm vpdpwssd x16"),
        "q0bf16": ("float_gemv fma x16", "bf16_gemm vdpbf16ps x16"),
    },
    "sapphirerapids": {
        "q4f16_autoawq": ("awq_gemv vpdpbusd x16", TILES + "int16_gemm vpdpwssd x16"),
        "q4f16_1": ("group4_gemv vpdpwssd x16", TILES + "int16_gemm vpdpwssd x16"),
        "q0f16": FLOAT[16],
        "q0bf16": ("float_gemv fma x16", TILES + "bf16_gemm vdpbf16ps x16"),
    },
    "neon": {
        "q4f16_autoawq": ("gemm fma x8", "gemm fma x8"),
        "q4f16_1": FLOAT[8],
        "q0f16": FLOAT[8],
    },
}
CHOICES["avx2"] = CHOICES["less"] = CHOICES["x86-64-v3"]
WORDS = {
    "vpmaddwd x8": '"llvm.x86.avx2.pmadd.wd"',
    "vpmaddwd x16": '"llvm.x86.avx512.pmaddw.d.512"',
    "vpdpwssd x8": '"llvm.x86.avx512.vpdpwssd.256"',
    "vpdpwssd x16": '"llvm.x86.avx512.vpdpwssd.512"',
    "vpdpbusd x16": '"llvm.x86.avx512.vpdpbusd.512"',
    "vdpbf16ps x16": '"bf16_dot"',
    "fma x8": '"float32x8", "llvm.fma"',
    "fma x16": '"float32x16", "llvm.fma"',
    "tdpbf16ps": '"llvm.x86.tdpbf16ps"',
}


def target_of(name: str) -> Target:
    return Target({"kind": "llvm", **TARGETS[name]})


@pytest.mark.parametrize(
    ("machine", "scheme"), [(m, s) for m, schemes in CHOICES.items() for s in schemes]
)
def test_choice(machine: str, scheme: str) -> None:
    target, layer = target_of(machine), LAYERS[scheme]
    claim = Linear().claim(layer.func, target)
    assert claim.applies
    names = [kernel.name for _, kernel in claim.kernels]
    assert (names[0], names[-1]) == CHOICES[machine][scheme]
    assert claim.kernels[-1][0] is None
    if machine not in ("avx2", "less"):
        used = written(layer, target)
        said = {word for word, call in WORDS.items() if any(word in name for name in names)}
        assert said <= used
        # every product of another kind would be the work of a kernel that nobody named
        assert {w for w in used if not w.startswith("fma")} <= said


def written(layer: Layer, target: Target) -> set[str]:
    """The instructions that the rule's code calls."""
    schedule = Linear().apply(layer.func, target, False)
    assert schedule is not None
    script = schedule.mod["main"].script()
    return {word for word, call in WORDS.items() if call in script}


@pytest.mark.parametrize(
    ("machine", "lanes", "registers"),
    [("x86-64", 4, 16), ("x86-64-v3", 8, 16), ("x86-64-v4", 16, 32), ("neon", 4, 32)],
)
def test_unit(machine: str, lanes: int, registers: int) -> None:
    unit = VectorUnit.of(target_of(machine))
    assert (unit.lanes, unit.registers) == (lanes, registers)
    wider = unit.at_least(8)
    assert wider.lanes >= 8
    assert wider.lanes * wider.registers == lanes * registers


@pytest.mark.parametrize(
    ("layer", "machine", "reason"),
    [
        (awq(1, 1024, 1024, 128), "neon", "awq_gemv: the target multiplies no int16 pairs"),
        (awq(1, 1024, 1032, 24), "zen4", "awq_gemv: the group 24 is no multiple of 16"),
        (group4(1, 1024, 96), "zen4", "4-bit groups: k 96 is no multiple of 128"),
        (group4(1, 1024, 1024, nk=False), "zen4", "group4_gemv: words lie along n"),
        (dense(40, 256, 256, "float16"), "zen4", "bf16_gemm: float16 would be rounded"),
        (dense(40, 256, 256, "bfloat16"), "less", "bf16_gemm: the target multiplies no bfloat16"),
    ],
)  # fmt: skip
def test_why_not_a_better_kernel(layer: Layer, machine: str, reason: str) -> None:
    assert reason in Linear().claim(layer.func, target_of(machine)).passed_over


@pytest.mark.parametrize(("k", "lanes"), [(1024, 16), (2880, 8)])  # gpt-oss has 2880 columns
def test_vectors_half_as_long_where_whole_ones_do_not_fit(k: int, lanes: int) -> None:
    target = Target({"kind": "llvm", "num-cores": 2, **TARGETS["sapphirerapids"]})
    claim = Linear().claim(group4(40, 256, k).func, target)
    assert claim.kernels[0][1].name == f"group4_gemv vpdpwssd x{lanes}"
    assert any(f"k {k}" in reason for reason in claim.passed_over) == (lanes == 8)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_numbers_of_half_vectors(rows: int) -> None:
    assert group4(rows, 128, 192, static=rows == 1).error() < 2e-3

"""The AMX prefill kernel on an emulator, its assembly, and what runs where AMX is not there."""

from __future__ import annotations

import ctypes

import amx_emulation
import numpy as np
import pytest
from amx_emulation import Emulator, amx_target, scheduled
from bf16_reference import rounded_awq, rounded_group4
from linear_functions import TARGET, Layer, awq, build, dense, group4

from mlc_bridge.compiler.target import cpu_features, make_target
from tir_schedules.cpu.vector_unit import VectorUnit

BFLOAT16 = 5e-3  # rounding of the result
EXACT = 3e-6  # float32 sums of exact products
FOUR_BIT = 4e-3  # x and W rounded to bfloat16

pytestmark = pytest.mark.skipif(
    not VectorUnit.of(TARGET).bf16, reason="this CPU has no avx512_bf16"
)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if amx_emulation.COMPILER is None:
        pytest.skip("no C compiler")
    return Emulator(tmp_path_factory.mktemp("amx"))


def test_before_and_after() -> None:
    layer = dense(40, 256, 256, "bfloat16")
    assert "llvm.x86" not in layer.func.script()
    script = scheduled(layer.func).script()
    assert script.count('"llvm.x86.tdpbf16ps"') == 4
    assert script.count('"llvm.x86.tileloadd64"') == 4 + 4  # sums; x and W
    assert script.count('"llvm.x86.tilestored64"') == 4
    assert script.count('"syscall"') == 1
    assert script.count('"bf16_dot"') == 6 * 4  # the other road


def test_float16_and_float32_stay_exact() -> None:
    for dtype in ("float16", "float32"):
        assert "tdpbf16ps" not in scheduled(dense(40, 256, 256, dtype).func).script()
    assert "tdpbf16ps" not in scheduled(awq(40, 256, 256, 128, "float32").func).script()


LINUX = {"kind": "llvm", "mcpu": "sapphirerapids", "mtriple": "x86_64-unknown-linux-gnu"}
SAPPHIRE_RAPIDS = make_target(LINUX)
BOTH = [dense(40, 128, 128, "bfloat16"), awq(40, 128, 128, 128)]


def test_tiles_are_asked_of_linux_alone() -> None:
    assert VectorUnit.of(SAPPHIRE_RAPIDS).tiles
    assert not VectorUnit.of(make_target({**LINUX, "mtriple": "x86_64-pc-windows-msvc"})).tiles
    assert not VectorUnit.of(make_target({**LINUX, "mcpu": "icelake-server"})).tiles


@pytest.mark.parametrize("layer", BOTH, ids=["dense", "awq"])
def test_assembly(layer: Layer) -> None:
    code = build(layer.func, SAPPHIRE_RAPIDS).mod.inspect_source("asm")
    for word in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease", "syscall"):
        assert f"\t{word}" in code or f"\tcallq\t{word}" in code


@pytest.mark.skipif("amx-bf16" in cpu_features(), reason="this machine lends its tiles")
@pytest.mark.parametrize("layer", BOTH, ids=["dense", "awq"])
def test_refused_by_this_kernel(layer: Layer) -> None:
    """The real code for AMX, on a machine without it: the very result of AVX-512."""
    assert np.array_equal(layer.run(amx_target()), layer.run(TARGET))


def test_refused_by_the_emulator(emulator: Emulator) -> None:
    layer = dense(40, 72, 264, "bfloat16", out_dtype="float32")
    emulator.set(permitted=0, asked=0, products=0)
    assert np.array_equal(emulator.run(layer), layer.run())
    assert (emulator.count("asked"), emulator.count("products")) == (1, 0)


def test_the_emulator_refuses(emulator: Emulator) -> None:
    """It is no yes-man: tiles without a configuration, and a configuration that cannot be."""
    emulator.library.emulated_tilezero(0)
    assert emulator.fault() == "tiles are used without a configuration"
    tile_of_65_bytes = np.zeros(64, np.uint8)
    tile_of_65_bytes[[0, 16, 48]] = 1, 65, 16
    emulator.library.emulated_ldtilecfg(tile_of_65_bytes.ctypes.data_as(ctypes.c_void_p))
    assert emulator.fault() == "a tile is too large"
    emulator.forgive()


@pytest.mark.parametrize("m", [17, 32, 33, 70, 513, 600])
@pytest.mark.parametrize(("n", "k"), [(72, 264), (136, 1056)])
def test_dense(emulator: Emulator, m: int, n: int, k: int) -> None:
    assert emulator.error(dense(m, n, k, "bfloat16", out_dtype="float32")) < EXACT


@pytest.mark.parametrize(("m", "n", "k"), [(33, 41, 77), (17, 1, 1)])
def test_odd_shapes(emulator: Emulator, m: int, n: int, k: int) -> None:
    assert emulator.error(dense(m, n, k, "bfloat16", out_dtype="float32")) < EXACT


def test_kn(emulator: Emulator) -> None:
    assert emulator.error(dense(19, 136, 77, "bfloat16", nk=False, out_dtype="float32")) < EXACT


def test_epilogues(emulator: Emulator) -> None:
    assert emulator.error(dense(45, 72, 64, "bfloat16", epilogue="bias")) < BFLOAT16
    assert emulator.error(awq(45, 136, 128, 64, epilogue="residual")) < FOUR_BIT


def test_rows_known_at_compile_time(emulator: Emulator) -> None:
    layer = dense(45, 72, 64, "bfloat16", static=True, out_dtype="float32")
    assert emulator.error(layer) < EXACT


@pytest.mark.parametrize(("n", "k", "group"), [(136, 256, 32), (264, 1152, 384)])
@pytest.mark.parametrize("m", [17, 70])
def test_awq(emulator: Emulator, m: int, n: int, k: int, group: int) -> None:
    layer = awq(m, n, k, group, out_dtype="float32")
    assert emulator.error(layer) < FOUR_BIT
    layer.expected = rounded_awq(layer)
    assert emulator.error(layer) < EXACT


@pytest.mark.parametrize(
    ("n", "k", "group", "nk", "dtype"),
    [
        (132, 640, 64, True, "float16"),
        (128, 128, 32, False, "float16"),
        (200, 384, 32, True, "bfloat16"),
    ],
)
def test_group4(emulator: Emulator, n: int, k: int, group: int, nk: bool, dtype: str) -> None:
    layer = group4(40, n, k, group, nk, dtype, out_dtype="float32")
    assert emulator.error(layer) < FOUR_BIT
    layer.expected = rounded_group4(layer, nk)
    assert emulator.error(layer) < EXACT

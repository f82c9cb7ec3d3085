"""CUDA kernels, as TVM prints them, against float64: `cuda_on_cpu.h` runs their source here.

Every case runs twice, with the threads of a block taking turns in rising and in falling order;
a missing barrier would make the two differ.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from cuda_on_cpu import COMPILER, Program, cuda_target, schedule
from linear_functions import Layer, awq, dense, group4, numpy_dtype

from tir_schedules.gpu import warp

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

HALF_ULP = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_PROGRAMS: dict[str, Program] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


def error(layer: Layer, rows: int, folder: Path, arch: str = "sm_80") -> float:
    """Largest difference over largest value; equal functions are built once."""
    key = layer.func.script() + arch
    if key not in _PROGRAMS:
        target = cuda_target(arch)
        place = tempfile.mkdtemp(dir=folder)
        _PROGRAMS[key] = Program(schedule(layer.func, target), target, Path(place))
    outputs = []
    for backwards in (False, True):
        out = np.full(layer.expected.shape, np.nan, numpy_dtype(layer.out_dtype))
        _PROGRAMS[key].run([*layer.inputs, out], backwards)
        outputs.append(out.astype(np.float64))
    assert np.array_equal(*outputs)
    return float(np.abs(outputs[0] - layer.expected).max() / np.abs(layer.expected).max())


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16])
@pytest.mark.parametrize(
    ("n", "k", "group", "dtype", "epilogue", "out_dtype"),
    [
        (136, 256, 128, "float16", "bias", "float32"),
        (288, 512, 32, "bfloat16", "residual", "bfloat16"),
        (128, 192, 192, "float16", "none", "float16"),  # one group for all of k
        (8208, 64, 32, "float16", "residual", "float32"),  # two words a lane
        (8200, 96, 96, "float16", "none", "float32"),  # the same, the last row of words odd
    ],
)
def test_awq_few_rows(
    n: int, k: int, group: int, dtype: str, epilogue: str, out_dtype: str, rows: int, folder: Path
) -> None:
    """q - z is exact, so only the float32 sums and the output's rounding are left."""
    layer = awq(rows, n, k, group, dtype, epilogue=epilogue, out_dtype=out_dtype)
    assert error(layer, rows, folder) < 1e-6 + HALF_ULP[out_dtype]


@pytest.mark.parametrize("rows", [17, 33, 64, 130])
@pytest.mark.parametrize(
    ("n", "k", "group", "dtype", "epilogue", "out_dtype", "limit"),
    [
        (136, 256, 128, "float16", "bias", "float32", 3e-4),
        (288, 512, 32, "bfloat16", "residual", "bfloat16", 6e-3),
        (128, 192, 192, "float16", "none", "float16", 1e-3),
    ],
)
def test_awq_many_rows(
    n: int,
    k: int,
    group: int,
    dtype: str,
    epilogue: str,
    out_dtype: str,
    limit: float,
    rows: int,
    folder: Path,
) -> None:
    """Weights are rounded to the half type, as the function says."""
    layer = awq(rows, n, k, group, dtype, epilogue=epilogue, out_dtype=out_dtype)
    assert error(layer, rows, folder) < limit


@pytest.mark.parametrize("rows", [1, 13, 70])
def test_awq_with_nibbles_in_plain_order(rows: int, folder: Path) -> None:
    """The order is read from the function: nibble i is channel 8c + i."""
    assert error(awq(rows, 64, 128, 32, epilogue="bias", plain=True), rows, folder) < 1e-3


def test_awq_static_row(folder: Path) -> None:
    """What models compile for decode."""
    layer = awq(1, 272, 512, 128, static=True, epilogue="residual", out_dtype="float32")
    assert error(layer, 1, folder) < 1e-6


@pytest.mark.parametrize("rows", [3, 40, 100])
@pytest.mark.parametrize(
    ("kind", "limit"),
    [("float16 nk", 2e-6), ("bfloat16 kn", 2e-6), ("group4 nk", 6e-4), ("group4 kn", 6e-4)],
)
def test_other_weights_on_tensor_cores(kind: str, limit: float, rows: int, folder: Path) -> None:
    name, order = kind.split()
    layer = (
        group4(rows, 136, 256, nk=order == "nk", out_dtype="float32")
        if name == "group4"
        else dense(rows, 136, 256, name, order == "nk", epilogue="bias", out_dtype="float32")
    )
    assert error(layer, rows, folder) < limit


@pytest.mark.parametrize("rows", [3, 40, 100])
@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        ("sm_80", "float8_e4m3fn"),
        ("sm_89", "float8_e4m3fn"),
        ("sm_89", "float8_e5m2"),
        ("sm_90a", "float8_e4m3fn"),
    ],
)
def test_float8_sides(arch: str, dtype: str, rows: int, folder: Path) -> None:
    """As float8 where the machine has the product, else as float16: no difference to see."""
    layer = dense(rows, 72, 256, dtype, epilogue="bias", out_dtype="float32")
    assert error(layer, rows, folder, arch) < 1e-6


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize(
    ("arch", "dtype", "stored"),
    [
        ("sm_80", "float16", "float8_e4m3fn"),
        ("sm_80", "bfloat16", "float8_e5m2"),
        ("sm_90a", "bfloat16", "float8_e4m3fn"),
    ],
)
def test_float8_codes_under_half_inputs(
    arch: str, dtype: str, stored: str, rows: int, folder: Path
) -> None:
    """Scales by row come after the sum, so codes are multiplied as they are, which is exact."""
    layer = dense(rows, 72, 256, dtype, epilogue="bias", out_dtype="float32", stored=stored)
    assert error(layer, rows, folder, arch) < 1e-6


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("weight", ["awq", "dense"])
def test_input_that_is_computed_on_the_way(weight: str, rows: int, folder: Path) -> None:
    if weight == "awq":
        made = awq(rows, 64, 128, 32, static=True)
    else:
        made = dense(rows, 64, 128, "float16", static=True)
    load = r'"float32", x\[(.*?)\]\)'
    text, found = re.subn(load, r'"float32", x[\1] + x[\1])', made.func.script())
    assert found == 1
    layer = replace(made, func=tvm.script.from_source(text), expected=2 * made.expected)
    assert error(layer, rows, folder) < 1e-3


@pytest.mark.parametrize("word", ["barrier", "wait_copies"])
def test_what_is_missing_is_noticed(
    word: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for the GPU is no kinder than a GPU."""
    monkeypatch.setattr(warp, word, lambda *_: None)
    layer = dense(40, 64, 96, "float16", epilogue="bias")
    with pytest.raises(AssertionError):
        assert error(layer, 40, folder) < 0.01

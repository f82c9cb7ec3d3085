"""4-bit floats run in the kernels of 4-bit groups, their values read off the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.s_tir import dlight

from mlc_bridge.compiler.target import host_target
from mlc_bridge.schemes import SCHEMES
from tir_schedules import RULES
from tir_schedules.contraction import find
from tir_schedules.cpu.table4 import TableWeight

N, K = 128, 256


def function(name: str, n: int = N, k: int = K) -> tvm.tirx.PrimFunc:
    """A layer's function without the global scale, float32 out."""
    scheme: Any = SCHEMES[name]
    specs = [(s, spec) for s, spec in scheme.params(n, k).items() if s != "q_global"]
    places = [te.placeholder(_int64(spec.shape), spec.dtype, s) for s, spec in specs]
    x = te.placeholder((te.var("m", "int64"), _int64((k,))[0]), scheme.model_dtype, "x")
    weight = scheme.dequantize(k)(*places)
    axis = te.reduce_axis((0, _int64((k,))[0]), "k")

    def product(r: Any, j: Any) -> Any:
        return te.sum(x[r, axis].astype("float32") * weight[j, axis].astype("float32"), axis=axis)

    y = te.compute((x.shape[0], _int64((n,))[0]), product, name="NT_matmul")
    return te.create_prim_func([x, *places, y]).with_attr("global_symbol", "main")


def _int64(shape: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(tvm.tirx.IntImm("int64", extent) for extent in shape)


@pytest.mark.parametrize("name", ["nvfp4_f16", "mxfp4_bf16"])
def test_the_table_is_read_off_the_function(name: str) -> None:
    layer = find(function(name))
    assert layer is not None
    found = TableWeight.match(layer)
    assert found is not None
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table = [*values, *(-v for v in values)]
    assert [(x - found.middle) / found.multiple for x in found.numbers] == table
    assert found.group == (16 if name.startswith("nv") else 32)


def test_quantiles_are_no_whole_numbers() -> None:
    layer = find(function("nf4_f16"))
    assert layer is not None
    assert TableWeight.match(layer) is None


@pytest.mark.parametrize("name", ["nvfp4_f16", "mxfp4_f16"])
def test_against_numpy(name: str) -> None:
    """One row, a few and many: three kernels."""
    scheme, rng, target = SCHEMES[name], np.random.default_rng(0), host_target()
    w = rng.normal(size=(N, K)).astype(np.float32)
    stored = scheme.encode(scheme.quantize(w))
    stored.pop("q_global", None)
    exact = scheme.decode(stored).dequantize().astype(np.float64)
    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(tvm.IRModule({"main": function(name)}))
    lib = tvm.compile(module, target=target)
    for rows in (1, 5, 40):
        x = rng.normal(size=(rows, K)).astype(np.float16)
        out = tvm.runtime.tensor(np.zeros((rows, N), np.float32))
        arrays = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (x, *stored.values())]
        lib["main"](*arrays, out)
        wanted = x.astype(np.float64) @ exact.T
        assert np.abs(out.numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()

"""Softmax and logit processors of a compiled lib against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from flush import denormals_flushed, needs_x86
from tvm import relax
from tvm.ir.transform import Sequential

from mlc_bridge.compiler import passes
from mlc_bridge.compiler.pipeline import lower, plan_memory, schedule
from mlc_bridge.compiler.target import host_target

VOCAB, ACTIVE = 301, 290
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def vm() -> relax.VirtualMachine:
    target = host_target()
    mod = tvm.IRModule()
    steps = [passes.softmax(VOCAB, ACTIVE), passes.logit_processors(target)]
    steps += [tvm.tirx.transform.BindTarget(target), relax.transform.LegalizeOps()]
    steps += [*schedule(target), *plan_memory(), *lower(target)]
    with target:
        mod = Sequential(steps)(mod)
        executable = relax.build(mod, target, relax_pipeline=None)
    return relax.VirtualMachine(executable, tvm.cpu())


def tensor(array: Array, dtype: str) -> Any:
    return tvm.runtime.tensor(np.asarray(array, dtype), tvm.cpu())


def kernel(vm: relax.VirtualMachine, name: str) -> Any:
    return vm.module.get_function(name, query_imports=True)


def logits(rows: int) -> Array:
    return np.random.default_rng(rows).normal(size=(rows, VOCAB)).astype("float32") * 5


def test_softmax_with_temperature(vm: relax.VirtualMachine) -> None:
    x, temperature = logits(3), np.array([1.0, 0.7, 0.0], "float32")
    x[2, [11, 40]] = 100.0  # equals share the probability at temperature 0
    got = vm["softmax_with_temperature"](
        tensor(x[:, None], "float32"), tensor(temperature, "float32")
    )
    known = x[:, :ACTIVE].astype("float64")
    z = np.exp((known - known.max(axis=1, keepdims=True)) / np.maximum(temperature, 1e-9)[:, None])
    expected = np.zeros((3, VOCAB))
    expected[:, :ACTIVE] = z / z.sum(axis=1, keepdims=True)
    assert expected[2, 11] == 0.5
    np.testing.assert_allclose(got.numpy()[:, 0], expected, rtol=1e-5, atol=1e-7)


@needs_x86
def test_softmax_where_denormals_are_flushed(vm: relax.VirtualMachine) -> None:
    x, temperature = tensor(logits(3)[:, None], "float32"), tensor([1.0, 0.3, 0.0], "float32")
    usual = vm["softmax_with_temperature"](x, temperature).numpy()
    assert ((usual > 0) & (usual < 1e-30)).any()
    with denormals_flushed():
        flushed = vm["softmax_with_temperature"](x, temperature).numpy()
    normal = usual > 1.2e-38
    assert np.array_equal(usual[normal], flushed[normal])
    assert flushed[~normal].max() < 1.2e-38


def test_logit_bias(vm: relax.VirtualMachine) -> None:
    x = logits(4)
    got, sequence, token, bias = tensor(x, "float32"), [0, 0, 3], [5, 300, 5], [1.5, -2.0, 3.0]
    kernel(vm, "apply_logit_bias_inplace")(
        got, tensor(sequence, "int32"), tensor(token, "int32"), tensor(bias, "float32")
    )
    x[sequence, token] += np.array(bias, "float32")
    np.testing.assert_array_equal(got.numpy(), x)


def test_penalty(vm: relax.VirtualMachine) -> None:
    x = logits(4)
    sequences, index, token, count = [3, 1], [0, 0, 1], [7, 9, 9], [2, 1, 4]
    penalties = np.array([[0.5, 0.25, 1.3], [0.0, 1.0, 2.0]], "float32")
    got = tensor(x, "float32")
    ints = [tensor(a, "int32") for a in (sequences, index, token, count)]
    kernel(vm, "apply_penalty_inplace")(got, *ints, tensor(penalties, "float32"))
    for i, t, c in zip(index, token, count, strict=True):
        presence, frequency, repetition = penalties[i]
        row = sequences[i]
        left = x[row, t] - (presence + np.float32(c) * frequency)
        x[row, t] = left * repetition if left < 0 else left / repetition
    np.testing.assert_allclose(got.numpy(), x, rtol=1e-6)


def test_bitmask(vm: relax.VirtualMachine) -> None:
    x = logits(4)
    bits = np.random.default_rng(1).integers(-(2**31), 2**31, (4, (VOCAB + 31) // 32))
    got = tensor(x, "float32")
    kernel(vm, "apply_bitmask_inplace")(got, tensor([2, 0], "int32"), tensor(bits, "int32"))
    allowed = (bits[:, np.arange(VOCAB) // 32] >> (np.arange(VOCAB) % 32)) & 1 == 1
    for row in (0, 2):
        x[row, ~allowed[row]] = np.finfo("float32").min
    np.testing.assert_array_equal(got.numpy(), x)

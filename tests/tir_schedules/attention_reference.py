"""Attention in float64 numpy, and compiled kernels called with numpy arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tvm

from mlc_bridge.compiler.target import host_target
from tir_schedules.cpu.attention_tile import Heads
from tir_schedules.cpu.vector_unit import VectorUnit

TARGET = host_target()
UNIT = VectorUnit.of(TARGET)
PAGE = 16
NO_KEY = -5e4
Array = np.ndarray[Any, Any]
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Rounding of the output to its dtype, relative to outputs of order one.
ROUNDING = {"float32": 2e-6, "float16": 1.2e-3, "bfloat16": 1.2e-2}


def compiled(build: Callable[..., Any], *args: Any) -> Callable[..., None]:
    """``build(*args)`` compiled for this machine; a dict argument comes as a tuple of pairs."""
    return compiled_for(TARGET, build, *args)


@functools.cache
def compiled_for(target: Any, build: Callable[..., Any], *args: Any) -> Callable[..., None]:
    plain = [dict(a) if isinstance(a, tuple) else a for a in args]
    func = build(*plain).with_attr("global_symbol", "kernel")
    kernel = tvm.compile(tvm.IRModule({"kernel": func}), target=target)["kernel"]

    def call(*arguments: Any) -> None:
        """Arrays are copied in, and back into the given arrays."""
        tensors = [_tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        kernel(*tensors)
        for array, tensor in zip(arguments, tensors, strict=True):
            if isinstance(array, np.ndarray):
                array[...] = tensor.numpy().view(array.dtype).reshape(array.shape)

    return call


def _tensor(array: Array) -> Any:
    out = tvm.runtime.empty(array.shape, str(array.dtype), tvm.cpu())
    return out.copyfrom(array)


def heads(num_q: int, num_kv: int, d: int, dtype: str) -> Heads:
    return Heads(num_q, num_kv, d, d, dtype)


def random(rng: np.random.Generator, dtype: str, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(NUMPY[dtype])


def attend(
    q: Array, k: Array, v: Array, visible: Array, scale: float, softcap: float | None = None
) -> tuple[Array, Array]:
    """``q [n, h_q, d]``, ``k, v [m, h_kv, d]``, ``visible [n, m]`` -> output and base-2 lse."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    score = np.einsum("nhd,mhd->hnm", q, k.repeat(group, 1)) * scale
    if softcap is not None:
        score = softcap * np.tanh(score / softcap)
    score = np.where(visible, score, -np.inf)
    top = score.max(-1, keepdims=True, initial=-1e30)
    weight = np.exp(score - top)
    total = weight.sum(-1)
    some = total > 0
    out = np.einsum(
        "hnm,mhd->nhd", weight / np.where(some, total, 1)[..., None], v.repeat(group, 1)
    )
    lse = np.where(some, (top[..., 0] + np.log(np.where(some, total, 1))) / np.log(2), NO_KEY)
    return out, lse.T


def causal(n: int, m: int) -> Array:
    """The last of ``n`` queries sees all ``m`` keys."""
    return np.arange(m)[None, :] <= np.arange(n)[:, None] + m - n


class Pages:
    """Sequences of keys and values in shuffled pages."""

    def __init__(
        self, rng: np.random.Generator, lengths: Sequence[int], num_kv: int, d: int, dtype: str
    ) -> None:
        counts = [-(-length // PAGE) for length in lengths]
        total = sum(counts)
        self.lengths = list(lengths)
        self.indptr = np.cumsum([0, *counts]).astype(np.int32)
        self.values = rng.permutation(total + 2)[:total].astype(np.int32)
        self.data = random(rng, dtype, total + 2, 2, num_kv, PAGE, d)
        self.last = np.array([(n - 1) % PAGE + 1 if n else 0 for n in lengths], np.int32)

    def sequence(self, b: int) -> tuple[Array, Array]:
        """``(k, v)`` of one sequence, ``[length, num_kv, d]``."""
        pages = self.data[self.values[self.indptr[b] : self.indptr[b + 1]]]
        flat = pages.transpose(1, 0, 3, 2, 4).reshape(2, -1, pages.shape[2], pages.shape[4])
        return flat[0, : self.lengths[b]], flat[1, : self.lengths[b]]


def rotate(x: Array, positions: Array, theta: float = 1e4, divisor: Array | float = 1.0) -> Array:
    """Rotary embedding of ``x [n, h, d]`` in float64; ``divisor [d / 2]`` of the rates."""
    d = x.shape[-1]
    rate = theta ** (-np.arange(0, d, 2) / d) / divisor
    angle = positions[:, None].astype(np.float64) * rate
    cos, sin = (f(angle)[:, None, :] for f in (np.cos, np.sin))
    low, high = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

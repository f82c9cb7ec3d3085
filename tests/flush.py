"""Floating-point mode of a process that has loaded a library built with fast-math, on x86-64.

Such a library sets flush-to-zero and denormals-are-zero in MXCSR when it is loaded, for a thread
and all that it starts later; MLC LLM's engine is one. The bits are set here by a function that TVM
compiles, on the caller and on every thread of TVM's pool.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

USUAL, FLUSHED = 0x1F80, 0x1F80 | 1 << 15 | 1 << 6
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="sets a register of x86-64")


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Flush-to-zero and denormals-are-zero inside, proven to be on in every thread."""
    try:
        _set(FLUSHED)
        yield
    finally:
        _set(USUAL)


def _set(mode: int) -> None:
    """Every thread sets its register; a second call shows that it did."""
    modes = np.full(int(tvm.get_global_func("runtime.NumThreads")()), mode, np.int32)
    denormal = np.full(len(modes), 1 << 20, np.uint32)  # written as bits, which no mode touches
    tiny, doubled = (tvm.runtime.tensor(bits.view(np.float32)) for bits in (denormal, denormal))
    library = _library(len(modes))
    library["set_mode"](tvm.runtime.tensor(modes))
    library["double"](tiny, doubled)
    expected = 0 if mode == FLUSHED else 1 << 21
    assert (doubled.numpy().view(np.uint32) == expected).all()


@cache
def _library(threads: int) -> Any:
    """``set_mode(int32 [t])`` and ``double(float32 [t], float32 [t])``, one task a thread."""

    def function(name: str, types: list[str], body: Callable[..., None]) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func():
            T.func_name(name)
            buffers = [T.arg(f"b{i}", T.buffer((threads,), dtype)) for i, dtype in enumerate(types)]
            with T.parallel(0, threads) as i:
                body(i, *buffers)
        return builder.get().with_attr("global_symbol", name)

    def set_mode(i: Any, modes: Any) -> None:
        address = tirx.address_of(tirx.BufferLoad(modes, [i]))
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.x86.sse.ldmxcsr", address))

    def double(i: Any, tiny: Any, doubled: Any) -> None:
        T.buffer_store(doubled, tirx.BufferLoad(tiny, [i]) * tirx.const(2, "float32"), [i])

    module = {
        "set_mode": function("set_mode", ["int32"], set_mode),
        "double": function("double", ["float32", "float32"], double),
    }
    return tvm.compile(tvm.IRModule(module), target="llvm")

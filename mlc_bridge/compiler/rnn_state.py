"""``create_rnn_state``: what recurrent layers keep of each sequence, in TVM's runtime.

    (max_batch), (max_history) -> state

The object has ``max_history`` places for every array of a sequence, of which a step reads one and
writes the next, so that as many steps less one can be taken back; one place is the least. It calls
two kernels for each array, over ``storage [slots, history, size]``::

    get    rows[i] = storage[slot[i], place[i]]
    set    storage[slot[i], (place[i] + 1) % history] = rows[i]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.script import tirx as T
from tvm.target import Target

from mlc_bridge.compiler.logits import Loop

SIZES = ("max_batch_size", "max_history")
LANES = 256


@dataclass(frozen=True)
class StateLayout:
    """``arrays``: elements and dtype of what every layer keeps of a sequence."""

    layers: int
    arrays: tuple[tuple[int, str], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one sequence."""
        each = (size * (tvm.DataType(dtype).bits // 8) for size, dtype in self.arrays)
        return self.layers * sum(each)


def attach_state(mod: tvm.IRModule, layout: StateLayout, target: Target) -> tvm.IRModule:
    """``mod`` with the function that creates the state, and its kernels."""
    loops = _cpu_loops() if target.kind.name == "llvm" else _gpu_loops()
    builder = relax.BlockBuilder(mod)
    size = {name: tirx.Var(name, "int64") for name in SIZES}
    params = [relax.Var(f"{name}_", relax.ShapeType([var])) for name, var in size.items()]
    with builder.function("create_rnn_state", params=params):
        kernels: list[list[Any]] = [[], []]
        for number, array in enumerate(layout.arrays):
            for made, kind, make in zip(kernels, ("get", "set"), (_get, _set), strict=True):
                name = f"rnn_state_{kind}_{number}"
                func = make(*array, *loops).with_attr("global_symbol", name)
                made.append(builder.add_func(func, name))
        zeros = [relax.op.zeros((size,), dtype) for size, dtype in layout.arrays]
        call = relax.call_pure_packed(
            "vm.builtin.rnn_state_create",
            relax.prim_value(layout.layers),
            *(relax.prim_value(var) for var in size.values()),
            *(relax.Tuple(made) for made in kernels),
            relax.Tuple([builder.emit(zero) for zero in zeros]),
            ty_args=relax.AnyType(),
        )
        builder.emit_func_output(builder.emit(call))
    return builder.finalize()


def _cpu_loops() -> tuple[Loop, Loop, Loop]:
    return T.serial, T.parallel, T.vectorized


def _gpu_loops() -> tuple[Loop, Loop, Loop]:
    return (
        lambda n: T.thread_binding(0, n, "blockIdx.y"),
        lambda n: T.thread_binding(0, n, "blockIdx.x"),
        lambda n: T.thread_binding(0, n, "threadIdx.x"),
    )


def _get(size: int, dtype: str, rows: Loop, blocks: Loop, lanes: Loop) -> tirx.PrimFunc:
    width = math.gcd(size, LANES)

    @T.prim_func(s_tir=True)
    def get(
        var_storage: T.handle, var_slot: T.handle, var_place: T.handle, var_out: T.handle
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        slots, history, batch = T.int32(), T.int32(), T.int32()
        storage = T.match_buffer(var_storage, (slots, history, size), dtype)
        slot = T.match_buffer(var_slot, (batch,), "int32")
        place = T.match_buffer(var_place, (batch,), "int32")
        out = T.match_buffer(var_out, (batch, size), dtype)
        for i in rows(batch):
            for block in blocks(size // width):
                for lane in lanes(width):
                    with T.sblock("get"):
                        T.reads()
                        T.writes()
                        at = T.meta_var(block * width + lane)
                        out[i, at] = storage[slot[i], place[i], at]

    return get


def _set(size: int, dtype: str, rows: Loop, blocks: Loop, lanes: Loop) -> tirx.PrimFunc:
    width = math.gcd(size, LANES)

    @T.prim_func(s_tir=True)
    def put(
        var_storage: T.handle, var_slot: T.handle, var_place: T.handle, var_rows: T.handle
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        slots, history, batch = T.int32(), T.int32(), T.int32()
        storage = T.match_buffer(var_storage, (slots, history, size), dtype)
        slot = T.match_buffer(var_slot, (batch,), "int32")
        place = T.match_buffer(var_place, (batch,), "int32")
        new = T.match_buffer(var_rows, (batch, size), dtype)
        for i in rows(batch):
            for block in blocks(size // width):
                for lane in lanes(width):
                    with T.sblock("set"):
                        T.reads()
                        T.writes()
                        at = T.meta_var(block * width + lane)
                        storage[slot[i], (place[i] + 1) % history, at] = new[i, at]

    return put

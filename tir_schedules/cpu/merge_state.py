"""Merge two attention results over different keys (``merge_state`` of the paged KV cache).

With base-2 log-sum-exps ``s``::

    v = (v 2**s + v' 2**s') / (2**s + 2**s'),    s = log2(2**s + 2**s')
"""

from __future__ import annotations

import math
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_schedules.cpu.attention_spare import tell_lse, told_heads
from tir_schedules.cpu.attention_tile import Heads
from tir_schedules.cpu.vector_math import exp2
from tir_schedules.cpu.vector_unit import VectorUnit

# Below this many rows waking the other cores costs more than it saves.
PARALLEL_FROM = 64


def merge_state(heads: Heads, unit: VectorUnit) -> PrimFunc:
    """The kernel ``(v, s, v_other, s_other)``: ``v [n, num_q, d_v]``, ``s`` float32."""
    num_heads, head_dim, dtype = heads.num_q, heads.d_v, heads.dtype
    row = _row(heads, math.gcd(unit.lanes, head_dim))

    @T.prim_func(s_tir=True)
    def merge_state_inplace(
        var_v: T.handle, var_s: T.handle, var_v_other: T.handle, var_s_other: T.handle
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        n = T.int32()
        v = T.match_buffer(var_v, (n, num_heads, head_dim), dtype)
        s = T.match_buffer(var_s, (n, num_heads), "float32")
        v_other = T.match_buffer(var_v_other, (n, num_heads, head_dim), dtype)
        s_other = T.match_buffer(var_s_other, (n, num_heads), "float32")
        if n < PARALLEL_FROM:
            for t in T.serial(n):
                row(v, s, v_other, s_other, t)
        else:
            for t in T.parallel(n):
                row(v, s, v_other, s_other, t)

    return merge_state_inplace


def _row(heads: Heads, lanes: int) -> Any:
    num_heads, head_dim, dtype, group = heads.num_q, heads.d_v, heads.dtype, heads.group
    real, tell = told_heads(heads), tell_lse(heads)

    @T.macro
    def row(v: T.Buffer, s: T.Buffer, v_other: T.Buffer, s_other: T.Buffer, t: T.int32) -> None:
        for h in T.serial(num_heads):
            with T.sblock("merge"):
                T.reads()
                T.writes()
                part = T.sblock_alloc_buffer((2,), "float32")
                top: T.let[T.float32] = T.max(s[t, h], s_other[t, h])
                part[0] = exp2(s[t, h] - top)
                part[1] = exp2(s_other[t, h] - top)
                total: T.let[T.float32] = part[0] + part[1]
                if h % group < real:
                    for c in T.serial(head_dim // lanes):
                        for i in T.vectorized(lanes):
                            at: T.let[T.int32] = c * lanes + i
                            v[t, h, at] = T.Cast(
                                dtype,
                                T.Cast("float32", v[t, h, at]) * (part[0] / total)
                                + T.Cast("float32", v_other[t, h, at]) * (part[1] / total),
                            )
                s[t, h] = top + T.log2(total)
                tell(v, s, t, h)

    return row

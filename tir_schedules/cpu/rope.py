"""Split a fused QKV row and rotate its queries and keys (``split_rotary`` of the paged KV cache).

``qkv [n, num_q + 2 num_kv, head_dim]`` -> ``q, k, v``. With ``R = rotary_dim`` and the angle
``f(t, d) = position[t] * scale * rate[d]``::

    x'[d] = x[d] cos f - x[d + R/2] sin f     d < R/2
    x'[d] = x[d] cos f + x[d - R/2] sin f     R/2 <= d < R,    x'[d] = x[d] beyond

(``gptj`` pairs neighbours, ``d`` and ``d ^ 1``, instead of halves.) The rates depend on neither
token nor head: they are computed once per call; cosine and sine once per token, for all heads.
TVM's own function definitions of the rates (llama3, yarn, ...) are used as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.relax.frontend.nn.llm.position_embedding import switch_rope_freq_func
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_schedules.cpu.vector_math import cos_sin
from tir_schedules.cpu.vector_unit import VectorUnit

# Below this many tokens waking the other cores costs more than it saves.
PARALLEL_FROM = 16


@dataclass(frozen=True)
class Fused:
    """The shape of a fused QKV row and how many leading dimensions of a head are rotated."""

    num_q: int
    num_kv: int
    head_dim: int
    rotary: int
    dtype: str


def _rates(rope_scaling: dict[str, Any], rotary_dim: int, theta: float) -> tuple[Any, Any]:
    """``rate(d)`` (the angle at position 1) and ``amplitude(d)`` (the cosine at position 0)."""
    frequencies = switch_rope_freq_func(rope_scaling)

    def at(position: float, d: Any) -> tuple[Any, dict[Any, Any]]:
        cos, _, names = frequencies(T.float32(position), d, rotary_dim, T.float32(theta), "float32")
        return cos, names

    def close(value: Any, names: dict[Any, Any]) -> Any:
        for var, meaning in names.items():
            value = tirx.Let(var, meaning, value)
        return value

    def rate(d: Any) -> Any:
        _, names = at(1.0, d)
        return close(next(iter(names)), names)

    def amplitude(d: Any) -> Any:
        return close(*at(0.0, d))

    return rate, amplitude


def split_rotary(
    num_q: int,
    num_kv: int,
    head_dim: int,
    dtype: str,
    unit: VectorUnit,
    theta: float,
    scale: float,
    rope_scaling: dict[str, Any],
    rotary_dim: int | None = None,
) -> PrimFunc:
    """The kernel ``(qkv, position_map, q, k, v, apply_rope)``."""
    shape = Fused(num_q, num_kv, head_dim, head_dim if rotary_dim is None else rotary_dim, dtype)
    row = _row(shape, unit, gptj=rope_scaling.get("rope_type") == "gptj")
    return _plain(shape, row, *_rates(rope_scaling, shape.rotary, theta), scale)


def _plain(shape: Fused, row: Any, rate: Any, amplitude: Any, scale: float) -> PrimFunc:
    num_q, num_kv, head_dim, dtype = shape.num_q, shape.num_kv, shape.head_dim, shape.dtype
    rotary, fused = shape.rotary, shape.num_q + 2 * shape.num_kv

    @T.prim_func(s_tir=True)
    def fused_rope(
        var_qkv: T.handle,
        var_position_map: T.handle,
        var_q: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        apply_rope: T.int64,
    ) -> None:
        T.func_attr({"op_pattern": 8, "tirx.is_scheduled": True, "tirx.noalias": True})
        n = T.int32()
        map_offset = T.int32()
        qkv = T.match_buffer(var_qkv, (n, fused, head_dim), dtype)
        position_map = T.match_buffer(var_position_map, (n,), "int32", elem_offset=map_offset)
        q = T.match_buffer(var_q, (n, num_q, head_dim), dtype)
        k = T.match_buffer(var_k, (n, num_kv, head_dim), dtype)
        v = T.match_buffer(var_v, (n, num_kv, head_dim), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            rates = T.sblock_alloc_buffer((rotary,), "float32")
            size = T.sblock_alloc_buffer((1,), "float32")
            if apply_rope > 0:
                size[0] = amplitude(0)
                for d in T.serial(rotary):
                    rates[d] = rate(d) * T.float32(scale)
            if n < PARALLEL_FROM:
                for t in T.serial(n):
                    row(qkv, position_map, q, k, v, rates, size, apply_rope, t)
            else:
                for t in T.parallel(n):
                    row(qkv, position_map, q, k, v, rates, size, apply_rope, t)

    return fused_rope


def _row(shape: Fused, unit: VectorUnit, gptj: bool) -> Any:
    num_q, num_kv, head_dim, rotary = shape.num_q, shape.num_kv, shape.head_dim, shape.rotary
    half, lanes = rotary // 2, math.gcd(unit.lanes, rotary // 2)
    tail = math.gcd(unit.lanes, head_dim - rotary)
    whole = math.gcd(unit.lanes, head_dim)
    rotate = _rotate_pairs(half, shape.dtype) if gptj else _rotate_halves(half, lanes, shape.dtype)

    @T.macro
    def head(
        source: T.Buffer,
        h: T.int32,
        out: T.Buffer,
        to: T.int32,
        t: T.int32,
        cos: T.Buffer,
        sin: T.Buffer,
        on: T.int64,
    ) -> None:
        """Rotate (or copy) one head of one token."""
        if on > 0:
            rotate(source, h, out, to, t, cos, sin)
            for c in T.serial((head_dim - rotary) // tail):
                for i in T.vectorized(tail):
                    out[t, to, rotary + c * tail + i] = source[t, h, rotary + c * tail + i]
        else:
            for c in T.serial(head_dim // whole):
                for i in T.vectorized(whole):
                    out[t, to, c * whole + i] = source[t, h, c * whole + i]

    @T.macro
    def row(
        qkv: T.Buffer, position_map: T.Buffer, q: T.Buffer, k: T.Buffer, v: T.Buffer,
        rates: T.Buffer, size: T.Buffer, apply_rope: T.int64, t: T.int32,
    ) -> None:  # fmt: skip
        with T.sblock("row"):
            T.reads()
            T.writes()
            cos = T.sblock_alloc_buffer((rotary,), "float32")
            sin = T.sblock_alloc_buffer((rotary,), "float32")
            if apply_rope > 0:
                pos: T.let[T.float32] = T.Cast("float32", position_map[t])
                for c in T.serial(rotary // lanes):
                    for i in T.vectorized(lanes):
                        cos[c * lanes + i] = size[0] * cos_sin(pos * rates[c * lanes + i])[0]
                    for i in T.vectorized(lanes):
                        sin[c * lanes + i] = size[0] * cos_sin(pos * rates[c * lanes + i])[1]
            for h in T.serial(num_q):
                head(qkv, h, q, h, t, cos, sin, apply_rope)
            for h in T.serial(num_kv):
                head(qkv, num_q + h, k, h, t, cos, sin, apply_rope)
            for h in T.serial(num_kv):
                head(qkv, num_q + num_kv + h, v, h, t, cos, sin, T.int64(0))

    return row


def _rotate_halves(half: int, lanes: int, dtype: str) -> Any:
    @T.macro
    def rotate(
        x: T.Buffer,
        h: T.int32,
        out: T.Buffer,
        to: T.int32,
        t: T.int32,
        cos: T.Buffer,
        sin: T.Buffer,
    ) -> None:
        for c in T.serial(half // lanes):
            for i in T.vectorized(lanes):
                out[t, to, c * lanes + i] = T.Cast(
                    dtype,
                    T.Cast("float32", x[t, h, c * lanes + i]) * cos[c * lanes + i]
                    - T.Cast("float32", x[t, h, half + c * lanes + i]) * sin[c * lanes + i],
                )
            for i in T.vectorized(lanes):
                out[t, to, half + c * lanes + i] = T.Cast(
                    dtype,
                    T.Cast("float32", x[t, h, half + c * lanes + i]) * cos[half + c * lanes + i]
                    + T.Cast("float32", x[t, h, c * lanes + i]) * sin[half + c * lanes + i],
                )

    return rotate


def _rotate_pairs(half: int, dtype: str) -> Any:
    @T.macro
    def rotate(
        x: T.Buffer,
        h: T.int32,
        out: T.Buffer,
        to: T.int32,
        t: T.int32,
        cos: T.Buffer,
        sin: T.Buffer,
    ) -> None:
        for d in T.serial(half):
            out[t, to, 2 * d] = T.Cast(
                dtype,
                T.Cast("float32", x[t, h, 2 * d]) * cos[2 * d]
                - T.Cast("float32", x[t, h, 2 * d + 1]) * sin[2 * d],
            )
            out[t, to, 2 * d + 1] = T.Cast(
                dtype,
                T.Cast("float32", x[t, h, 2 * d + 1]) * cos[2 * d + 1]
                + T.Cast("float32", x[t, h, 2 * d]) * sin[2 * d + 1],
            )

    return rotate

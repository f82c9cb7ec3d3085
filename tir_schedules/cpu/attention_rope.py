"""Rotary embedding applied while a query or key row is loaded (``rope_mode`` inline).

``x'[d] = cos(f) x[d] - sin(f) x[d + D/2]`` in the lower half, ``cos(f) x[d] + sin(f) x[d - D/2]``
in the upper one, ``f = position * scale / theta**(2 d / D)``, with the model's frequency scaling
(llama3, yarn, ...) as TVM defines it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.relax.frontend.nn.llm.position_embedding import switch_rope_freq_func

# (buffer, leading indices, position, d, theta, scale) -> float32 element of the rotated row
Rotate = Callable[[Any, tuple[Any, ...], Any, Any, Any, Any], Any]


def rotated(head_dim: int, rope_scaling: dict[str, Any]) -> Rotate:
    """The element ``x'[d]`` of a rotated row of ``head_dim`` float32 values."""
    frequencies = switch_rope_freq_func(rope_scaling)
    half = head_dim // 2

    def element(x: Any, row: tuple[Any, ...], pos: Any, d: Any, theta: Any, scale: Any) -> Any:
        cos, sin, named = frequencies(pos * scale, d, head_dim, theta, "float32")
        here = x[(*row, d)].astype("float32")
        other = tirx.if_then_else(d < half, -x[(*row, d + half)], x[(*row, d - half)])
        value = cos * here + sin * other.astype("float32")
        for var, meaning in named.items():
            value = tirx.Let(var, meaning, value)
        return value

    return element

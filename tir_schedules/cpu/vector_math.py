"""Transcendental functions that vectorize.

LLVM turns ``exp``, ``exp2`` and ``tanh`` of a vector into one libm call per lane. Here they are
polynomials of adds, multiplies and one integer shift, so a vector of lanes costs about a dozen
instructions::

    2**x = 2**n * 2**f,   n = floor(x + 1/2),   f = x - n in [-1/2, 1/2]

``2**f`` is the degree-6 Chebyshev interpolant (relative error 1e-7 in float32 arithmetic), ``2**n``
is built in the exponent bits. All functions take and return float32 expressions.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.script import tirx as T

LOG2_E = 1.4426950408889634

# Chebyshev interpolant of 2**f on [-1/2, 1/2], lowest power first.
_EXP2 = (
    1.0,
    0.6931471824645996,
    0.24022650718688965,
    0.05550327152013779,
    0.009618056938052177,
    0.0013400427997112274,
    0.00015461444854736328,
)


# ln 2 in two parts; n * part is exact for |n| < 2**9.
_LN2 = (0.693359375, -2.12194440e-4)


def exp2(x: tvm.ir.Expr) -> tvm.ir.Expr:
    """``2**x`` for float32 ``x``: exactly 0 at -127 and below, inf at 127.5 and above."""
    x = T.min(T.max(x, T.float32(-127.0)), T.float32(127.5))
    n = T.floor(x + T.float32(0.5))
    return _power(n, x - n)


def exp(x: tvm.ir.Expr) -> tvm.ir.Expr:
    """``e**x`` for float32 ``x``, relative error 2e-7 also where ``x log2 e`` would round."""
    x = T.min(T.max(x, T.float32(-127.0 / LOG2_E)), T.float32(127.5 / LOG2_E))
    n = T.floor(x * T.float32(LOG2_E) + T.float32(0.5))
    r = x - n * T.float32(_LN2[0]) - n * T.float32(_LN2[1])
    return _power(n, r * T.float32(LOG2_E))


def _power(n: tvm.ir.Expr, f: tvm.ir.Expr) -> tvm.ir.Expr:
    """``2**(n + f)``. No ``Let`` for what is used twice: a cast to bfloat16 around it would copy
    the binding, which TVM's vectorizer refuses; LLVM finds the common parts by itself.
    """
    bits = (T.Cast("int32", n) + T.int32(127)) << T.int32(23)
    return _horner(_EXP2, f) * T.reinterpret("float32", bits)


def sigmoid(x: tvm.ir.Expr) -> tvm.ir.Expr:
    """``1 / (1 + e**-x)`` for float32 ``x``."""
    return T.float32(1) / (T.float32(1) + exp(T.float32(0) - x))


def tanh(x: tvm.ir.Expr) -> tvm.ir.Expr:
    """``tanh x = 1 - 2 / (e**2x + 1)`` for float32 ``x`` (absolute error 1e-7)."""
    return T.float32(1) - T.float32(2) / (exp2(x * T.float32(2 * LOG2_E)) + T.float32(1))


def fold(vector: tvm.ir.Expr, lanes: int, op: Callable[..., tvm.ir.Expr]) -> tvm.ir.Expr:
    """Reduce a float32 vector of ``lanes`` to a scalar by halves (``op``: add or max)."""
    if lanes == 1:
        return vector
    var = tirx.Var("v", f"float32x{lanes}")
    if lanes == 2:
        body = op(tirx.Shuffle([var], [0]), tirx.Shuffle([var], [1]))
    else:
        half = f"float32x{lanes // 2}"
        body = fold(op(T.vectorlow(half, var), T.vectorhigh(half, var)), lanes // 2, op)
    return tirx.Let(var, vector, body)


# pi/2 in three parts of decreasing size; k * part is exact for |k| < 2**17.
_HALF_PI = (1.5703125, 0.00048351287841796875, 3.13855707645416259765625e-07)
_HALF_PI_TAIL = 6.077100628276710e-11
_SIN = (-0.16666654611, 0.0083321608736, -0.00019515295891)
_COS = (0.04166664568298827, -0.001388731625493765, 2.443315711809948e-05)


def cos_sin(x: tvm.ir.Expr) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
    """``(cos x, sin x)`` for float32 ``|x| < 2e5`` (absolute error 2e-7 of the rounded ``x``).

    ``x = k pi/2 + r`` with ``|r| <= pi/4``; ``k mod 4`` swaps and negates the two polynomials.
    """
    k = T.floor(x * T.float32(0.6366197723675814) + T.float32(0.5))
    r = x
    for part in (*_HALF_PI, _HALF_PI_TAIL):
        r = r - k * T.float32(part)
    z = r * r
    sin = r + r * z * _horner(_SIN, z)
    cos = T.float32(1) - z * T.float32(0.5) + z * z * _horner(_COS, z)
    quadrant = T.Cast("int32", k)
    odd = (quadrant & 1) == 1
    s, c = T.Select(odd, cos, sin), T.Select(odd, sin, cos)
    minus_s = (quadrant & 2) == 2
    minus_c = ((quadrant + 1) & 2) == 2
    return T.Select(minus_c, -c, c), T.Select(minus_s, -s, s)


def _horner(coefficients: tuple[float, ...], x: tvm.ir.Expr) -> tvm.ir.Expr:
    value = T.float32(coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + T.float32(c)
    return value

"""Rebuilding scalar TIR expressions with other variables and other loads.

`rebuild` is what a rule needs to move the arithmetic of a recognised function (an epilogue, a
weight's dequantization) into a loop nest of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim

BINARY = tuple(
    getattr(prim, name)
    for name in (
        *("Add", "Sub", "Mul", "Div", "Mod", "FloorDiv", "FloorMod", "Min", "Max"),
        *("EQ", "NE", "LT", "LE", "GT", "GE", "And", "Or"),
        *("LShift", "RShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    )
)
LoadRule = Callable[[TensorLoad, list[ir.Expr]], "ir.Expr | None"]


def rebuild(
    expr: ir.Expr, variables: Mapping[ir.Var, ir.Expr], load: LoadRule | None = None
) -> ir.Expr:
    """Copy `expr` with `variables` replaced; `load(node, indices)` may replace a buffer load.

    Raises
    ------
    NotImplementedError
        For a node this walk does not know; `contraction.find` then finds no layer.
    """

    def go(e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Var):
            return variables.get(e, e)
        if isinstance(e, TensorLoad):
            indices = [go(i) for i in e.indices]
            new = load(e, indices) if load else None
            return tirx.BufferLoad(e.source, indices) if new is None else new
        if isinstance(e, BINARY):
            return type(e)(*_same_type(go(e.a), go(e.b)))
        if isinstance(e, prim.Cast):
            value = go(e.value)
            return value if value.ty == e.ty else prim.Cast(e.ty, value)
        if isinstance(e, prim.Not):
            return prim.Not(go(e.a))
        if isinstance(e, prim.Select):
            return prim.Select(go(e.condition), *_same_type(go(e.true_value), go(e.false_value)))
        if isinstance(e, ir.Call):
            return ir.Call(e.op, [go(a) for a in e.args], attrs=e.attrs, ret_ty=e.ty)
        if isinstance(e, prim.IntImm | prim.FloatImm | ir.StringImm):
            return e
        raise NotImplementedError(type(e).__name__)

    return go(expr)


def _same_type(a: ir.Expr, b: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
    """Two index types may meet after a replacement: the wider one wins."""
    if a.ty == b.ty:
        return a, b
    wide = max(str(a.ty), str(b.ty), key=lambda dtype: int("".join(filter(str.isdigit, dtype))))
    return a.astype(wide), b.astype(wide)


def walk(expr: ir.Expr) -> Iterator[ir.Expr]:
    """Every node of `expr`, parents first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def children(e: ir.Expr) -> list[ir.Expr]:
    """The direct operands of a scalar expression."""
    if isinstance(e, TensorLoad):
        return list(e.indices)
    if isinstance(e, BINARY):
        return [e.a, e.b]
    if isinstance(e, prim.Cast):
        return [e.value]
    if isinstance(e, prim.Not):
        return [e.a]
    if isinstance(e, prim.Select):
        return [e.condition, e.true_value, e.false_value]
    if isinstance(e, ir.Call):
        return list(e.args)
    return []


def strip_casts(e: ir.Expr) -> ir.Expr:
    """`e` without the casts around it."""
    while isinstance(e, prim.Cast):
        e = e.value
    return e


def in_float32(e: ir.Expr) -> ir.Expr:
    """`e` with its float16 and bfloat16 arithmetic done in float32: half types only in memory.

    Roundings to a half type between two operations are dropped too, so the result is nearer to
    the exact one. Half arithmetic without hardware support is several times slower.
    """
    half = ("float16", "bfloat16")
    if isinstance(e, TensorLoad):
        return e.astype("float32") if str(e.ty) in half else e
    if isinstance(e, BINARY):
        return type(e)(in_float32(e.a), in_float32(e.b))
    if isinstance(e, prim.Cast):
        value = in_float32(e.value)
        return value.astype("float32") if str(e.ty) in half else value.astype(str(e.ty))
    if isinstance(e, prim.Not):
        return prim.Not(in_float32(e.a))
    if isinstance(e, prim.Select):
        return prim.Select(
            in_float32(e.condition), in_float32(e.true_value), in_float32(e.false_value)
        )
    if isinstance(e, prim.FloatImm) and str(e.ty) in half:
        return tirx.FloatImm("float32", e.value)
    if isinstance(e, ir.Call):
        arguments = [in_float32(a) for a in e.args]
        kept = str(e.ty) not in half
        ty = e.ty if kept else tirx.FloatImm("float32", 0).ty
        return ir.Call(e.op, arguments, attrs=e.attrs, ret_ty=ty)
    return e

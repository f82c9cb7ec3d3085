"""The value of a scalar TIR expression for given variables and memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from tvm import ir
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim

Number = int | float
DO: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "FloorDiv": operator.floordiv,
    "FloorMod": operator.mod, "Div": operator.truediv, "Min": min, "Max": max,
    "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le,
    "GT": operator.gt, "GE": operator.ge, "And": lambda a, b: a and b, "Or": lambda a, b: a or b,
    "LShift": operator.lshift, "RShift": operator.rshift, "BitwiseAnd": operator.and_,
    "BitwiseOr": operator.or_, "BitwiseXor": operator.xor,
}  # fmt: skip


def evaluate(
    e: ir.Expr, variables: Mapping[ir.Var, Number], memory: Mapping[ir.Var, Number]
) -> Number | None:
    """`memory` has what every load from a buffer gives; None for what is not known."""

    def go(e: ir.Expr) -> Any:
        if isinstance(e, prim.IntImm | prim.FloatImm):
            return e.value
        if isinstance(e, ir.Var):
            return variables[e]
        if isinstance(e, TensorLoad):
            return memory[e.source]
        if isinstance(e, prim.Cast):
            value = go(e.value)
            return float(value) if "float" in str(e.ty) else int(value)
        if isinstance(e, prim.Select):
            return go(e.true_value if go(e.condition) else e.false_value)
        if isinstance(e, prim.Not):
            return not go(e.a)
        return DO[type(e).__name__](go(e.a), go(e.b))

    try:
        return go(e)
    except (KeyError, AttributeError, TypeError):
        return None

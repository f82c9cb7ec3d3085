"""4-bit codes of a table: `W[n, k] = value(q[n, k]) * scale(n, k // G)` (nvfp4, mxfp4).

`q_weight` is uint32 `[n, K / 8]` as in `group4.py`, and all of that layout's kernels are used. What
a code stands for is read off the function: its expression is evaluated for the 16 codes. Where some
multiple of all values is whole and small (E2M1 times two: 0, 1, 2, 3, 4, 6, 8, 12), a byte shuffle
turns codes into those numbers, `middle` higher so that they are not negative; the multiple goes
into the scale. The scale may be any expression of one value per group (a float8, an exponent).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from ..evaluate import evaluate
from ..expression import in_float32, rebuild, strip_casts, walk
from ..rule import objections
from . import simd
from .awq import CODES, group_size
from .group4 import MASK, GroupWeight, _natural
from .vector_unit import VectorUnit

EMPTY = 0x80008000  # the high bytes of a pair: a shuffle gives zero for them
LARGEST = 15  # of the whole numbers, as of 4-bit codes less their zero
NO_SHUFFLE = "the target shuffles no bytes by a table"


@dataclass(frozen=True)
class TableWeight(GroupWeight):
    """`numbers[q]` is `value * multiple + middle`, a byte."""

    name: ClassVar[str] = "4-bit codes of a table"
    numbers: tuple[int, ...] = ()
    multiple: float = 1.0
    scale_of: ir.Expr | None = field(default=None, compare=False)
    n_var: ir.Var | None = field(default=None, compare=False)
    k_var: ir.Var | None = field(default=None, compare=False)

    @staticmethod
    def match(c: Contraction) -> TableWeight | None:
        """Recognise a product of a table's value and a scale over words of eight columns each."""
        e = strip_casts(c.weight)
        if not isinstance(e, prim.Mul):
            return None
        for code, scale in ((e.a, e.b), (e.b, e.a)):
            words, scales = _only_load(code), _only_load(scale)
            if words is not None and scales is not None and str(words.ty) == "uint32":
                return _match(c, code, words, scale, scales)
        return None

    def against(self, unit: VectorUnit) -> tuple[str, ...]:
        """What the int16 kernels want, with groups from 16 on, and byte shuffles."""
        columns = CODES * unit.lanes
        return objections(
            (unit.pairs and unit.lanes in (8, 16), NO_SHUFFLE),
            (self.k % columns == 0, f"k {self.k} is no multiple of {columns}"),
            (
                self.group % 16 == 0 and columns % self.group == 0,
                f"groups of {self.group} are no part of {columns}",
            ),
            (self.n >= columns, f"n {self.n} is below {columns}"),
        )

    def pairs_of(self, words: ir.Expr, i: int, lanes: int) -> ir.Expr:
        """Numbers of columns (8w + i, 8w + i + 4) of every word as int16 pairs."""

        def splat(value: int) -> ir.Expr:
            return simd.splat(tirx.IntImm("uint32", value), lanes)

        codes = ((words >> splat(4 * i)) & splat(MASK)) | splat(EMPTY)
        return simd.looked_up(self.numbers, codes, lanes)

    def scale(self, g: ir.Expr, n: ir.Expr, lanes: int) -> ir.Expr:
        """Scales of channels n ... n + lanes - 1 of group g as float32."""
        return self._evaluated(lanes, lambda lane: (n + lane, g))

    def scales_along(self, n: ir.Expr, g: ir.Expr, count: int) -> ir.Expr:
        """Scales of groups g ... g + count - 1 of channel n."""
        return self._evaluated(count, lambda lane: (n, g + lane))

    def _evaluated(self, lanes: int, at: Callable[[ir.Expr], tuple[ir.Expr, ir.Expr]]) -> ir.Expr:
        assert self.scale_of is not None
        assert self.k_var is not None
        assert self.n_var is not None
        vector = T.alloc_buffer((lanes,), "float32")
        factor = tirx.FloatImm("float32", 1.0 / self.multiple)
        with T.vectorized(0, tirx.IntImm(str(self.k_var.ty), lanes)) as lane:
            n, g = at(lane)
            place = {self.n_var: n, self.k_var: g * self.group}
            value = in_float32(rebuild(self.scale_of, place)).astype("float32")
            T.buffer_store(vector, value * factor, [lane])
        return T.bind(simd.load(vector, [tirx.IntImm("int32", 0)], lanes))


def _only_load(e: ir.Expr) -> TensorLoad | None:
    """What `e` loads, once or several times, if it is from one buffer."""
    loads = [x for x in walk(e) if isinstance(x, TensorLoad)]
    alike = bool(loads) and all(x.source.same_as(loads[0].source) for x in loads)
    return loads[0] if alike else None


def _match(
    c: Contraction, code: ir.Expr, words: TensorLoad, scale: ir.Expr, scales: TensorLoad
) -> TableWeight | None:
    at, where = list(words.indices), list(scales.indices)
    if len(at) != 2 or len(where) != 2:
        return None
    if not at[0].same_as(c.n_var) or not where[0].same_as(c.n_var):
        return None
    group = group_size(where[1], c.k_var, c.k)
    shift = next((strip_casts(e.b) for e in walk(code) if _shifts(e, words)), None)
    if group is None or shift is None or not _natural(c, at[1], shift):
        return None
    values = [evaluate(code, {c.k_var: 0}, {words.source: q}) for q in range(1 << 4)]
    found = _whole([float(v) for v in values if v is not None])
    if found is None:
        return None
    multiple, numbers = found
    return TableWeight(
        words.source, scales.source, group, -min(numbers), True, c.n, c.k,
        tuple(x - min(numbers) for x in numbers), multiple, scale, c.n_var, c.k_var,
    )  # fmt: skip


def _shifts(e: ir.Expr, words: TensorLoad) -> bool:
    return (
        isinstance(e, prim.RShift)
        and isinstance(e.a, TensorLoad)
        and e.a.source.same_as(words.source)
    )


def _whole(values: list[float]) -> tuple[float, list[int]] | None:
    """The smallest multiple that makes all 16 values whole, and those; no larger than LARGEST."""
    for multiple in (1.0, 2.0, 4.0) if len(values) == 1 << 4 else ():
        numbers = [value * multiple for value in values]
        if all(x == int(x) and abs(x) <= LARGEST for x in numbers):
            return multiple, [int(x) for x in numbers]
    return None

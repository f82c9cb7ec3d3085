"""What the attention kernels of a GPU share: shapes, arguments in order, masks, softmax words.

Signatures are those that ``vm.builtin.paged_attention_kv_cache_create`` calls; `cpu/attention_*.py`
explain each argument. Scores are in base 2, ``q k * scale * log2(e)``; a local
layer is told by a negative scale and sees the last `window` positions. `rotary_mode` 1 (keys cached
unrotated) is not computed: no cache that this project makes asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from . import warp

NO_SCORE = -5e4  # of a row without keys; the running maximum starts here
MASKED = -1e9  # so far below that its exponential is zero
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Heads:
    """One layer's attention: `num_q` query heads over `num_kv` heads of `d`, pages of `page` keys.

    `window`: positions that a local layer sees; `cap`: of the scores, `cap tanh(s / cap)`; `spare`:
    the last query head of every group does not attend, it tells lse (`cpu/attention_spare.py`).
    """

    num_q: int
    num_kv: int
    d: int
    dtype: str
    window: int | None = None
    cap: float | None = None
    page: int = 16
    spare: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_q // self.num_kv

    def fit(self) -> bool:
        """True where 16 bytes and tensor cores of half types do."""
        whole = self.d % 16 == 0 if self.d <= 128 else self.d in range(160, 257, 32)
        return self.dtype in warp.HALF and whole and self.page == 16

    def pages(self, count: ir.Var) -> tuple[Any, ...]:
        return (count, 2, self.num_kv, self.page, self.d)

    def cut(self, score: ir.Expr) -> ir.Expr:
        """The capped score, in the unit of base-2 scores."""
        return score if self.cap is None else warp.soft_cap(score, self.cap * LOG2_E)

    def put(self, output: ir.Var, place: Sequence[ir.Expr], value: ir.Expr) -> None:
        """Store one element `(row, head, dim)` of the output, if its head attends."""
        with when(self.attends(place[1])):
            T.buffer_store(output, value.astype(self.dtype), list(place))

    def tell(self, output: ir.Var, row: ir.Expr, head: ir.Expr, lse: ir.Expr) -> None:
        """Write lse to the spare head: as a number of the dtype, and what that leaves."""
        if not self.spare:
            return
        lse, g = T.bind(lse), T.bind(rest(head, self.group))
        place = [row, head - g + (self.group - 1)]
        high = T.bind(lse.astype(self.dtype))
        with when(self.attends(head)):
            T.buffer_store(output, high, [*place, 2 * g])
            low = (lse - high.astype("float32")).astype(self.dtype)
            T.buffer_store(output, low, [*place, 2 * g + 1])

    def attends(self, head: ir.Expr) -> ir.Expr:
        """Whether a query head is no spare one."""
        if not self.spare:
            return tirx.IntImm("bool", 1)
        return rest(head, self.group) < self.group - 1

    def first_seen(self, scale: ir.Expr, query: ir.Expr, offset: ir.Expr) -> ir.Expr:
        """The first key that a query at position `query` sees; key j stands at `offset + j`."""
        if self.window is None:
            return i32(0)
        begin = tirx.max(query - offset - (self.window - 1), i32(0))
        return tirx.Select(scale < f32(0), begin, i32(0))


class Arguments:
    """Declares a function's parameters one after another."""

    def size(self, name: str, dtype: str = "int32") -> ir.Var:
        """A symbolic size, which is no parameter."""
        return tirx.Var(name, dtype)

    def tensor(self, name: str, shape: Sequence[Any], dtype: str, view: bool = False) -> ir.Var:
        """`view`: it may begin anywhere in its memory."""
        handle = T.arg(f"{name}_handle", T.handle())
        offset = tirx.Var(f"{name}_offset", "int64") if view else None
        buffer = T.match_buffer(handle, tuple(shape), dtype, elem_offset=offset)
        IRBuilder.name(name, buffer)
        return buffer

    def view(self, name: str, shape: Sequence[Any]) -> ir.Var:
        """Lists of int32 that share one array on the device."""
        return self.tensor(name, shape, "int32", view=True)

    def number(self, name: str, dtype: str) -> ir.Var:
        return T.arg(name, tirx.Var(name, dtype))


def function(name: str, emit: Callable[[Arguments], None]) -> tirx.PrimFunc:
    """A scheduled function whose parameters and body `emit` writes."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        emit(Arguments())
    return builder.get()


def i32(value: int) -> ir.Expr:
    return tirx.IntImm("int32", value)


def f32(value: float) -> ir.Expr:
    return tirx.FloatImm("float32", value)


def ratio(a: ir.Expr, b: ir.Expr | int) -> ir.Expr:
    """a / b of what is not negative."""
    return tirx.truncdiv(a, b if isinstance(b, ir.Expr) else i32(b))


def rest(a: ir.Expr, b: ir.Expr | int) -> ir.Expr:
    """a % b of what is not negative."""
    return tirx.truncmod(a, b if isinstance(b, ir.Expr) else i32(b))


def host(name: str, value: ir.Expr) -> ir.Var:
    """A number that the host computes before it launches."""
    bound = T.bind(value)
    IRBuilder.name(name, bound)
    return bound


def workspace(name: str, shape: Sequence[ir.Expr | int]) -> ir.Var:
    """Float32 memory between two kernels of a function, which the host takes from its pool."""
    buffer = T.alloc_buffer(tuple(shape), "float32")
    IRBuilder.name(name, buffer)
    return buffer


def variable(value: ir.Expr) -> ir.Var:
    """A register that can be written again."""
    register = T.alloc_buffer((1,), str(value.ty), scope="local")
    T.buffer_store(register, value, [0])
    return register


@contextmanager
def when(condition: ir.Expr) -> Iterator[None]:
    """A condition that TVM does not solve anew for every access under it (15 s of a prefill)."""
    flag = variable(condition.astype("int32"))
    with T.If(flag[0] != 0), T.Then():
        yield


def owner(
    slot: ir.Expr, lane: ir.Expr, batch: ir.Expr, first: Callable[[ir.Expr], ir.Expr]
) -> ir.Expr:
    """The sequence b with `first(b) <= slot < first(b + 1)`, which the lanes find; -1: none."""
    found = variable(i32(-1))
    with T.serial(0, warp.ceil_div(batch, warp.WARP)) as i:
        b = T.bind(i * warp.WARP + lane)
        with when(b < batch), when(tirx.all(first(b) <= slot, slot < first(b + 1))):
            T.buffer_store(found, b, [0])
    return T.bind(warp.largest(found[0]))


def base2(scale: ir.Expr) -> ir.Expr:
    """The factor of q k; the sign of the scale only says whether the layer is local."""
    return T.bind(tirx.max(scale, f32(0) - scale) * f32(LOG2_E))


def rising(
    scores: ir.Var, at: Sequence[Sequence[int]], m: ir.Var, den: ir.Var, row: int
) -> ir.Expr:
    """One step of the online softmax of a row that four neighbouring lanes share.

    `scores[at]` become weights `2**(s - m)`; returns what earlier sums must be multiplied with.
    """
    top = m[row]
    for where in at:
        top = tirx.max(top, scores[tuple(where)])
    top = T.bind(top)
    for mask in (1, 2):
        top = T.bind(tirx.max(top, warp.other_lane(top, mask)))
    fade = T.bind(warp.exp2(m[row] - top))
    T.buffer_store(m, top, [row])
    T.buffer_store(den, den[row] * fade, [row])
    for where in at:
        T.buffer_store(scores, warp.exp2(scores[tuple(where)] - top), list(where))
        T.buffer_store(den, den[row] + scores[tuple(where)], [row])
    return fade


def of_all(den: ir.Expr) -> ir.Expr:
    """The sum over the four lanes of a row."""
    for mask in (1, 2):
        den = T.bind(den + warp.other_lane(den, mask))
    return den


def inverse(total: ir.Expr) -> ir.Expr:
    """1 / total, or 0 for a row that saw no key."""
    return T.bind(tirx.Select(total > f32(0), f32(1) / tirx.max(total, f32(1e-30)), f32(0)))


def joint(top: ir.Expr, total: ir.Expr) -> ir.Expr:
    """log2 of the sum of all weights."""
    known = top + tirx.log2(tirx.max(total, f32(1e-30)))
    return tirx.Select(total > f32(0), known, f32(NO_SCORE))

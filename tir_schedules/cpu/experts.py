"""The rule for the experts of a mixture on CPUs: the kernels of linear layers, expert by expert.

    one token       every expert it chose, one after the other, each read as a layer of one row
    more tokens     pairs (token, slot) sorted by expert; then every expert that anybody chose:
                    its weights come from memory once, for all of its rows

The sort counts: how many pairs every expert has, where its first one goes, then each pair to its
place. A layer's kernels see the expert's part of every stack as a buffer of its own, which begins
at the expert's first element.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from ..by_rows import emit_by_rows
from ..experts import NO_EXPERTS, At, Mixture, find_experts
from ..rule import Claim
from .linear import claim_of_layer


class Experts:
    """`out[t, c, n] = finish(sum_k x[t, c, k] * W[chosen[t, c], n, k])` for every weight layout."""

    def claim(self, func: tirx.PrimFunc, target: Target) -> Claim:
        """Which kernels an expert gets, or why `func` is no mixture."""
        mixture = find_experts(func)
        if mixture is None:
            return Claim(contradicts=(NO_EXPERTS,))
        views = {b: tirx.decl_buffer(b.shape[1:], str(b.dtype), "view") for b in mixture.stacks}
        zero = tirx.IntImm(mixture.index, 0)
        rows = zero + 1 if _of_one_token(mixture) else tirx.Var("rows", mixture.index)
        return claim_of_layer(mixture.layer(rows, lambda _: mixture.at(zero, zero), views), target)

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the mixture with a new body, or `None` when `func` is none."""
        mixture = find_experts(func)
        if mixture is None or not self.claim(func, target).applies:
            return None
        with IRBuilder() as builder, T.sblock("root"):
            T.reads([])
            T.writes([])
            emit = _one_token if _of_one_token(mixture) else _many_tokens
            emit(mixture, target)
        return s_tir.Schedule(func.with_body(builder.get()))


def _of_one_token(m: Mixture) -> bool:
    tokens = m.extent(m.token)
    return isinstance(tokens, tirx.IntImm) and tokens.value == 1


def _one_token(m: Mixture, target: Target) -> None:
    zero = m.const(0)
    with T.serial(0, m.const(m.slots)) as slot:
        expert = T.bind(tirx.BufferLoad(m.chosen, [zero, slot]).astype(m.index))
        _expert(m, target, expert, m.const(1), lambda _: m.at(zero, slot))


def _many_tokens(m: Mixture, target: Target) -> None:
    pairs = _Sorted.emit(m)
    with T.serial(0, m.const(m.experts)) as expert:
        first = T.bind(pairs.start(expert))
        count = T.bind(pairs.start(expert + 1) - first)

        def at(r: ir.Expr) -> dict[ir.Var, ir.Expr]:
            pair = tirx.BufferLoad(pairs.order, [first + r]).astype(m.index)
            return m.at(*m.place(pair))

        with T.If(count > 0), T.Then():
            _expert(m, target, expert, count, at)


def _expert(m: Mixture, target: Target, expert: ir.Expr, rows: ir.Expr, at: At) -> None:
    """Emit one expert's layer."""
    layer = m.layer(rows, at, {stack: _view(m, stack, expert) for stack in m.stacks})
    emit_by_rows(layer, claim_of_layer(layer, target).kernels)


def _view(m: Mixture, stack: ir.Var, expert: ir.Expr) -> ir.Var:
    """The expert's part of a stack, as a buffer of its own."""
    dtype, zero = str(stack.dtype), m.const(0)
    begin = tirx.address_of(tirx.BufferLoad(stack, [expert, *[zero] * (len(stack.shape) - 1)]))
    pointer = T.bind(begin, ir.PointerType(ir.PrimType(dtype), "global"))
    return T.decl_buffer(stack.shape[1:], dtype, data=pointer)


@dataclass(frozen=True)
class _Sorted:
    """`order`: pairs (token * slots + slot), those of expert e from `starts[e]` on."""

    starts: ir.Var
    order: ir.Var

    def start(self, expert: ir.Expr) -> ir.Expr:
        return tirx.BufferLoad(self.starts, [expert]).astype(str(expert.ty))

    @staticmethod
    def emit(m: Mixture) -> _Sorted:
        """Sort at the builder's current place."""
        pairs = T.bind(m.pairs)
        starts = T.alloc_buffer((m.experts + 1,), "int32")
        places = T.alloc_buffer((m.experts + 1,), "int32")
        order = T.alloc_buffer((pairs,), "int32")
        one = tirx.IntImm("int32", 1)

        def add(buffer: ir.Var, at: ir.Expr, value: ir.Expr) -> None:
            T.buffer_store(buffer, tirx.BufferLoad(buffer, [at]) + value, [at])

        def expert(pair: ir.Expr) -> ir.Expr:
            return T.bind(tirx.BufferLoad(m.chosen, m.place(pair)).astype(m.index))

        with T.serial(0, m.const(m.experts + 1)) as e:
            T.buffer_store(starts, tirx.IntImm("int32", 0), [e])
        with T.serial(0, pairs) as pair:
            add(starts, expert(pair) + 1, one)
        with T.serial(0, m.const(m.experts)) as e:
            add(starts, e + 1, tirx.BufferLoad(starts, [e]))
        with T.serial(0, m.const(m.experts + 1)) as e:
            T.buffer_store(places, tirx.BufferLoad(starts, [e]), [e])
        with T.serial(0, pairs) as pair:
            e = expert(pair)
            T.buffer_store(order, pair.astype("int32"), [tirx.BufferLoad(places, [e])])
            add(places, e, one)
        return _Sorted(starts, order)

"""Finding the experts of a mixture: `out[t, c, n] = f(sum_k x[t, c, k] * W[chosen[t, c], n, k])`.

Every array that makes W has the expert as its first axis, and `chosen` tells which one slot c of
token t goes to. Seen from one expert this is a linear layer: W is its part of the stacks, the rows
are the (token, slot) pairs that chose it. `Mixture.layer` is that layer, as a `Contraction`, so
that the kernels for linear layers do all the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import ir, s_tir, tirx
from tvm.ir import TensorLoad

from .contraction import (
    Block,
    Contraction,
    before_float32,
    can_be_copied,
    finisher,
    inline_injective,
    plain_blocks,
    product_of,
)
from .expression import rebuild, strip_casts, walk

NO_EXPERTS = "no single sum of x[t, c, k] * W[chosen[t, c], n, k] over k"
At = Callable[[ir.Expr], dict[ir.Var, ir.Expr]]


@dataclass(frozen=True)
class Mixture:
    """`stacks`: the buffers whose first axis is the expert; `token` and `slot` index `chosen`."""

    func: tirx.PrimFunc
    total: Block
    last: Block | None
    x: ir.Expr
    weight: ir.Expr
    chosen: ir.Var
    stacks: tuple[ir.Var, ...]
    token: ir.Var
    slot: ir.Var
    n_var: ir.Var
    k_var: ir.Var

    @property
    def index(self) -> str:
        """Integer type of the loops."""
        return str(self.n_var.ty)

    def extent(self, axis: ir.Var) -> ir.Expr:
        return dict(zip(self.total.axes, self.total.extents, strict=True))[axis]

    def const(self, value: int) -> ir.Expr:
        """`value` in the integer type of the loops."""
        return tirx.IntImm(self.index, value)

    def at(self, token: ir.Expr, slot: ir.Expr) -> dict[ir.Var, ir.Expr]:
        return {self.token: token, self.slot: slot}

    def place(self, pair: ir.Expr) -> list[ir.Expr]:
        """Token and slot of pair number token * slots + slot."""
        slots = self.const(self.slots)
        return [tirx.floordiv(pair, slots), tirx.floormod(pair, slots)]

    @property
    def experts(self) -> int:
        return int(self.stacks[0].shape[0].value)

    @property
    def pairs(self) -> ir.Expr:
        """Tokens times slots; for NaN, one expert may get all of them."""
        return self.extent(self.token).astype(self.index) * self.const(self.slots)

    @property
    def slots(self) -> int:
        """Experts of a token."""
        return int(self.extent(self.slot).value)

    def layer(self, rows: ir.Expr, at: At, views: Mapping[ir.Var, ir.Var]) -> Contraction:
        """One expert's linear layer: `at(r)` are token and slot of row r, `views` what the stacks
        hold of this expert."""

        def load(e: TensorLoad, indices: list[ir.Expr]) -> ir.Expr | None:
            view = views.get(e.source)
            return None if view is None else tirx.BufferLoad(view, indices[1:])

        weight = rebuild(self.weight, {}, load)
        finish = finisher(self.total, self.last, [self.token, self.slot], at)
        assert finish is not None  # else there were no mixture
        return Contraction(
            func=self.func,
            rows=rows,
            n=self.extent(self.n_var).value,
            k=self.extent(self.k_var).value,
            index=self.index,
            x=lambda r, k: strip_casts(rebuild(self.x, {**at(r), self.k_var: k})),
            x_dtype=str(strip_casts(self.x).ty),
            weight=strip_casts(weight),
            weight_dtype=before_float32(weight),
            n_var=self.n_var,
            k_var=self.k_var,
            finish=finish,
            out_dtype=str((self.last or self.total).store.buffer.dtype),
            most=self.pairs,
        )


def find_experts(func: tirx.PrimFunc) -> Mixture | None:
    """The mixture that `func` computes, or `None` when it is anything else."""
    try:
        blocks = plain_blocks(inline_injective(func))
    except s_tir.ScheduleError:
        return None
    sums = [b for b in blocks or [] if b.init is not None]
    if not blocks or len(sums) != 1 or blocks[0] is not sums[0] or len(blocks) > 2:
        return None
    found = _mixture(func, blocks[0], blocks[1] if len(blocks) == 2 else None)
    return found if found is not None and _copies(found) else None


def _mixture(func: tirx.PrimFunc, total: Block, last: Block | None) -> Mixture | None:
    product = product_of(total)
    spatial = [v for v, r in zip(total.axes, total.reduces, strict=True) if not r]
    if product is None or sum(total.reduces) != 1 or len(spatial) != 3:
        return None
    token, slot, n_var = spatial
    k_var = total.axes[total.reduces.index(True)]
    static = all(isinstance(e, tirx.IntImm) for e in total.extents[1:])
    if list(total.store.indices) != spatial or not static:
        return None
    for x, weight in (product, product[::-1]):
        choices = _choices(weight)
        stacks = {e.source: e for e in _loads(weight) if e.source not in choices}
        if len(choices) != 1 or not all(_is_stack(e, choices) for e in stacks.values()):
            continue
        if n_var in set(walk(x)) or _choices(x):
            continue
        (chosen,) = choices
        return Mixture(
            *(func, total, last, x, weight, chosen, tuple(stacks)),
            *(token, slot, n_var, k_var),
        )
    return None


def _loads(e: ir.Expr) -> list[TensorLoad]:
    return [x for x in walk(e) if isinstance(x, TensorLoad)]


def _choices(weight: ir.Expr) -> set[ir.Var]:
    """Buffers whose values index others."""
    return {
        inner.source for load in _loads(weight) for index in load.indices for inner in _loads(index)
    }


def _is_stack(e: TensorLoad, choices: set[ir.Var]) -> bool:
    """Does the choice, and nothing else, tell the first index, and only that?"""
    first, *rest = e.indices
    chosen = strip_casts(first)
    inside = isinstance(chosen, TensorLoad) and chosen.source in choices
    return inside and not any(_loads(index) for index in rest)


def _copies(mixture: Mixture) -> bool:
    """Can the layer be written anew?"""
    if finisher(mixture.total, mixture.last, [mixture.token, mixture.slot], lambda _: {}) is None:
        return False
    zero = mixture.const(0)
    try:
        return can_be_copied(mixture.layer(zero, lambda _: mixture.at(zero, zero), {}))
    except NotImplementedError:
        return False

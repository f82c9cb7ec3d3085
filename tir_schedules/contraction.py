"""Finding the one linear layer in a fused function: `out[r, n] = f(sum_k x[r, k] * W[n, k])`.

After operator fusion a linear layer is one PrimFunc made of three parts: injective blocks that
make the weight (dequantize, transpose) and perhaps the input, one block with the sum, and
injective blocks that finish the result (bias, residual, activation, cast). `find` inlines the
first and the last part and hands out each as an expression, so that a kernel is written once and
serves every combination:

    x(r, k)              value of the input, any float type
    weight(n, k)         value of the weight, as the function computes it
    finish(r, n, acc)    (buffer, indices, value) to store for the sum `acc`

`r` runs over all leading axes of the output taken together (batch times sequence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from tvm import ir, s_tir, sym, tirx
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim
from tvm.tirx.script.builder import ir as T
from tvm.tirx.stmt import BufferStore, For

from .expression import in_float32, rebuild, strip_casts, walk

NO_LAYER = "no single sum of x[r, k] * W[n, k] over k"
Point = Callable[[ir.Expr, ir.Expr], ir.Expr]


@dataclass(frozen=True)
class Contraction:
    """One linear layer; `index` is the integer type of its loops ("int32" or "int64").

    `weight` comes without its outermost casts, `weight_dtype` is what the function rounds it to.
    """

    func: tirx.PrimFunc
    rows: ir.Expr
    n: int
    k: int
    index: str
    x: Point
    x_dtype: str
    weight: ir.Expr
    weight_dtype: str
    n_var: ir.Var
    k_var: ir.Var
    finish: Callable[[ir.Expr, ir.Expr, ir.Expr], tuple[ir.Var, list[ir.Expr], ir.Expr]]
    out_dtype: str
    most: ir.Expr | None = None
    """The most rows there can be, where `rows` is known only inside the function."""

    @property
    def room(self) -> ir.Expr:
        """Rows that buffers are made for."""
        return self.rows if self.most is None else self.most

    def fixed_rows(self) -> int | None:
        """The number of rows when it is known at compile time."""
        return self.rows.value if isinstance(self.rows, tirx.IntImm) else None

    def put(self, r: ir.Expr, n: ir.Expr, acc: ir.Expr) -> None:
        """Emit the store of output (r, n), whose sum is `acc`."""
        buffer, indices, value = self.finish(r, n, acc)
        T.buffer_store(buffer, value, indices)

    def const(self, value: int) -> ir.Expr:
        """`value` in the integer type of the loops."""
        return tirx.IntImm(self.index, value)


@dataclass(frozen=True)
class Block:
    """An sblock of plain form: loops that are the block's own axes, one store in the body."""

    axes: list[ir.Var]
    extents: list[ir.Expr]
    reduces: list[bool]
    store: BufferStore
    init: BufferStore | None


def find(func: tirx.PrimFunc) -> Contraction | None:
    """The linear layer that `func` computes, or `None` when it is anything else."""
    try:
        blocks = plain_blocks(inline_injective(func))
    except s_tir.ScheduleError:
        return None
    sums = [b for b in blocks or [] if b.init is not None]
    if blocks is None or len(sums) != 1 or blocks[0] is not sums[0] or len(blocks) > 2:
        return None
    found = _contraction(func, sums[0], blocks[1] if len(blocks) == 2 else None)
    return found if found is not None and can_be_copied(found) else None


def can_be_copied(c: Contraction) -> bool:
    """Does `rebuild` know every expression of the layer?"""
    zero = c.const(0)
    try:
        c.x(zero, zero)
        c.finish(zero, zero, tirx.FloatImm("float32", 0))
        rebuild(c.weight, {})
    except NotImplementedError:
        return False
    return True


def inline_injective(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with every block inlined that can be."""
    schedule = s_tir.Schedule(func, error_render_level="none")
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue
    return schedule.mod["main"]


def products(func: tirx.PrimFunc) -> int:
    """Terms of all sums of `func`, sizes that are not known yet taken as one."""
    total = 0
    schedule = s_tir.Schedule(func, error_render_level="none")
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        axes = schedule.get(block).iter_vars
        if any(axis.iter_type == tirx.IterVar.CommReduce for axis in axes):
            total += prod(getattr(axis.dom.extent, "value", 1) for axis in axes)
    return total


def plain_blocks(func: tirx.PrimFunc) -> list[Block] | None:
    """The blocks of `func` in order, or `None` when one is not of plain form."""
    root = func.body.block
    nests = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    blocks = [_plain(nest) for nest in nests]
    return None if None in blocks else blocks  # type: ignore[return-value]


def _plain(nest: tirx.Stmt) -> Block | None:
    loops: dict[ir.Var, ir.Expr] = {}
    while isinstance(nest, For):
        loops[nest.loop_var] = nest.extent
        nest = nest.body
    block = getattr(nest, "block", None)
    if block is None or not isinstance(block.body, BufferStore):
        return None
    if not all(isinstance(v, ir.Var) and v in loops for v in nest.iter_values):
        return None
    return Block(
        axes=[axis.var for axis in block.iter_vars],
        extents=[loops[v] for v in nest.iter_values],
        reduces=[axis.iter_type == tirx.IterVar.CommReduce for axis in block.iter_vars],
        store=block.body,
        init=block.init,
    )


def _contraction(func: tirx.PrimFunc, total: Block, last: Block | None) -> Contraction | None:
    product = product_of(total)
    if product is None or sum(total.reduces) != 1:
        return None
    spatial = [v for v, r in zip(total.axes, total.reduces, strict=True) if not r]
    k_var = total.axes[total.reduces.index(True)]
    if list(total.store.indices) != spatial or len(spatial) < 2:
        return None
    n_var = spatial[-1]
    extent = dict(zip(total.axes, total.extents, strict=True))
    if not isinstance(extent[n_var], tirx.IntImm) or not isinstance(extent[k_var], tirx.IntImm):
        return None
    sides = [(a, b) for a, b in (product, product[::-1]) if _uses(a, [*spatial[:-1], k_var])]
    sides = [(x, w) for x, w in sides if not _uses_any(x, [n_var]) and _uses(w, [n_var, k_var])]
    sides = [(x, w) for x, w in sides if not _uses_any(w, spatial[:-1])]
    if len(sides) != 1:
        return None
    x, weight = sides[0]
    lead = spatial[:-1]
    rows = tirx.IntImm(str(n_var.ty), 1)
    for v in lead:
        rows = sym.Analyzer().simplify(rows * extent[v])

    def at(r: ir.Expr) -> dict[ir.Var, ir.Expr]:
        return dict(zip(lead, unravel(r, [extent[v] for v in lead]), strict=True))

    finish = finisher(total, last, lead, at)
    if finish is None:
        return None
    return Contraction(
        func=func,
        rows=rows,
        n=extent[n_var].value,
        k=extent[k_var].value,
        index=str(n_var.ty),
        x=lambda r, k: strip_casts(rebuild(x, {**at(r), k_var: k})),
        x_dtype=str(strip_casts(x).ty),
        weight=strip_casts(weight),
        weight_dtype=before_float32(weight),
        n_var=n_var,
        k_var=k_var,
        finish=finish,
        out_dtype=str((last or total).store.buffer.dtype),
    )


def product_of(total: Block) -> tuple[ir.Expr, ir.Expr] | None:
    """The factors of `out[...] = out[...] + cast(a) * cast(b)`."""
    value = total.store.value
    if not isinstance(value, prim.Add) or not isinstance(value.a, TensorLoad):
        return None
    if not value.a.source.same_as(total.store.buffer):
        return None
    factors = strip_casts(value.b)
    return (factors.a, factors.b) if isinstance(factors, prim.Mul) else None


def before_float32(e: ir.Expr) -> str:
    """The type of a factor before it is widened for the product."""
    while isinstance(e, prim.Cast) and str(e.ty) == "float32":
        e = e.value
    return str(e.ty)


def _uses(e: ir.Expr, variables: list[ir.Var]) -> bool:
    """Does `e` depend on every variable (axes of one element are simplified away)?"""
    seen = {v for v in walk(e) if isinstance(v, ir.Var)}
    return variables[-1] in seen and _uses_any(e, variables)


def _uses_any(e: ir.Expr, variables: list[ir.Var]) -> bool:
    seen = {v for v in walk(e) if isinstance(v, ir.Var)}
    return any(v in seen for v in variables)


def unravel(flat: ir.Expr, shape: list[ir.Expr]) -> list[ir.Expr]:
    """The coordinates of a flat index; axes of extent one take no division."""
    out: list[ir.Expr] = []
    one = [isinstance(e, tirx.IntImm) and e.value == 1 for e in shape]
    for i in reversed(range(len(shape))):
        if one[i]:
            out.append(tirx.IntImm(str(flat.ty), 0))
        elif all(one[:i]):
            out.append(flat)
        else:
            out.append(tirx.floormod(flat, shape[i]))
            flat = tirx.floordiv(flat, shape[i])
    return out[::-1]


def finisher(
    total: Block, last: Block | None, lead: list[ir.Var], at: Callable
) -> Callable[[ir.Expr, ir.Expr, ir.Expr], tuple[ir.Var, list[ir.Expr], ir.Expr]] | None:
    """How the sum becomes the stored value, or `None` when the last block moves elements."""
    partial = total.store.buffer

    if last is None:

        def plain(r: ir.Expr, n: ir.Expr, acc: ir.Expr) -> tuple[ir.Var, list[ir.Expr], ir.Expr]:
            return partial, [*at(r).values(), n], acc.astype(str(partial.dtype))

        return plain

    loads = [e for e in walk(last.store.value) if isinstance(e, TensorLoad)]
    uses = [list(e.indices) for e in loads if e.source.same_as(partial)]
    if not uses or any(u != list(last.axes) for u in uses):
        return None

    def fused(r: ir.Expr, n: ir.Expr, acc: ir.Expr) -> tuple[ir.Var, list[ir.Expr], ir.Expr]:
        point = dict(zip(last.axes, [*at(r).values(), n], strict=True))

        def load(e: TensorLoad, _: list[ir.Expr]) -> ir.Expr | None:
            return acc.astype(str(partial.dtype)) if e.source.same_as(partial) else None

        indices = [rebuild(i, point) for i in last.store.indices]
        value = in_float32(rebuild(last.store.value, point, load))
        return last.store.buffer, indices, value.astype(str(last.store.buffer.dtype))

    return fused

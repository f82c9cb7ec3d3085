"""Linear layer over few rows (decode) with weights `[n, k]`, float or made so: stream W once.

    for every stretch of output columns, in parallel:
        for every 4 or 8 rows of W:
            for every tile of rows of x:
                sum[row of W, row of x] += W[n, k ... k + lanes] * x[r, k ... k + lanes]
        out = finish(sum)

Each accumulator holds partial sums of one output; a tree of shuffles adds its lanes at the end.
W comes from memory exactly once: the second tile of rows finds its 4 or 8 rows in the cache, and
the next 4 or 8 are prefetched into L2, a stretch of k at a time.
"""

from __future__ import annotations

from tvm import ir, tirx
from tvm.tirx.script.builder import ir as T

from ..contraction import Contraction
from . import simd
from .evaluated import EvaluatedWeight
from .vector_unit import VectorUnit

STRETCH = 16  # vectors of k between two prefetches
FEW = 16  # with more rows than this the packed kernel wins


def emit_float_gemv(c: Contraction, weight: EvaluatedWeight, unit: VectorUnit) -> None:
    """Emit the layer for 1 ... FEW rows at the builder's current place."""
    row_tile = 1 if c.fixed_rows() == 1 else 4
    width = 8 if row_tile == 1 else 4
    groups, lanes = -(-c.n // width), unit.lanes
    tasks = unit.parallel_tasks(groups, 2 * c.n * c.k)
    share = -(-groups // tasks)
    with simd.loop(tasks > 1, c.const(tasks)) as task:
        x = _inputs(c, lanes)
        first = T.bind(task * share)
        count = T.bind(tirx.max(tirx.min(c.const(groups) - first, c.const(share)), c.const(0)))
        with T.serial(0, count) as g:
            n0 = T.bind((first + g) * width)
            with T.serial(0, simd.ceil_div(c.rows, row_tile)) as i:
                _tile(c, weight, x, n0, width, i, row_tile, lanes)


def _inputs(c: Contraction, lanes: int) -> ir.Var:
    """All rows of x as float32, in a buffer of the task."""
    few = c.fixed_rows() or FEW
    x = T.alloc_buffer((few, c.k), "float32")
    whole = c.k // lanes
    with T.serial(0, c.rows) as r:
        if whole:
            with T.serial(0, c.const(whole)) as i, T.vectorized(0, c.const(lanes)) as lane:
                k = i * lanes + lane
                T.buffer_store(x, c.x(r, k).astype("float32"), [r, k])
        for k in range(whole * lanes, c.k):
            T.buffer_store(x, c.x(r, c.const(k)).astype("float32"), [r, c.const(k)])
    return x


def _tile(
    c: Contraction,
    weight: EvaluatedWeight,
    x: ir.Var,
    n0: ir.Expr,
    width: int,
    tile: ir.Expr,
    row_tile: int,
    lanes: int,
) -> None:
    """`width` columns times `row_tile` rows of the output, from row `tile * row_tile` on."""
    r0 = tile * row_tile
    columns = [T.bind(tirx.min(n0 + j, c.const(c.n - 1))) for j in range(width)]
    rows = [T.bind(tirx.min(r0 + i, c.rows - 1)) for i in range(row_tile)]
    acc = simd.Registers(row_tile, width, lanes)
    acc.clear()
    whole = c.k // lanes
    with T.serial(0, c.const(-(-whole // STRETCH))) as stretch:
        first = T.bind(stretch * STRETCH)
        # a loop of its own: beside a prefetch, LLVM keeps the sums in memory
        with T.If(tile == 0), T.Then():
            _ahead(c, weight, n0 + width, width, first * lanes, STRETCH * lanes)
        with T.serial(0, tirx.min(c.const(whole) - first, c.const(STRETCH))) as s:
            k = T.bind((first + s) * lanes)
            xs = [T.bind(simd.load(x, [r, k], lanes)) for r in rows]
            for j, n in enumerate(columns):
                w = weight.along_k(n, k, lanes)
                for i in range(row_tile):
                    acc.set(i, j, simd.fma(w, xs[i], acc.get(i, j), lanes))
    for i in range(row_tile):
        total = simd.lane_sums([acc.get(i, j) for j in range(width)], lanes)
        _finish(c, weight, x, rows[i], r0 + i, columns, n0, total, whole * lanes)


def _ahead(
    c: Contraction, weight: EvaluatedWeight, n0: ir.Expr, width: int, k0: ir.Expr, depth: int
) -> None:
    """Prefetch `width` rows of W from n0 on, `depth` columns each."""
    line = weight.columns_per_line()
    for j in range(width):
        n = T.bind(tirx.min(n0 + j, c.const(c.n - 1)))
        with T.serial(0, c.const(-(-depth // line))) as i:
            weight.ahead(n, tirx.min(k0 + i * line, c.const(c.k - 1)))


def _finish(
    c: Contraction,
    weight: EvaluatedWeight,
    x: ir.Var,
    row: ir.Expr,
    wanted: ir.Expr,
    columns: list[ir.Expr],
    n0: ir.Expr,
    total: ir.Expr,
    k_done: int,
) -> None:
    """Add the columns of k that fill no vector, then store what lies inside the output."""
    width = len(columns)
    sums = T.alloc_buffer((width,), "float32")
    simd.store(sums, [tirx.IntImm("int32", 0)], total, width)
    for j, n in enumerate(columns):
        for k in range(k_done, c.k):
            w = weight.at(n, c.const(k))
            more = tirx.BufferLoad(sums, [j]) + w * tirx.BufferLoad(x, [row, c.const(k)])
            T.buffer_store(sums, more, [j])

    def put() -> None:
        if c.n % width == 0:
            with T.vectorized(0, c.const(width)) as j:
                c.put(row, n0 + j, tirx.BufferLoad(sums, [j]))
            return
        for j in range(width):
            with T.If(n0 + j < c.n), T.Then():
                c.put(row, n0 + j, tirx.BufferLoad(sums, [j]))

    if c.fixed_rows() == 1:
        put()
    else:
        with T.If(wanted < c.rows), T.Then():
            put()

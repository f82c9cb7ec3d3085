"""One tile of attention on a CPU: online softmax on transposed scores.

For a tile of query rows ``r`` (lanes of the vector register) and a tile of keys ``j``::

    S[j, r]   = sum_d K[j, d] Q[d, r]                   Q holds q * sm_scale * log2(e)
    m'[r]     = max(m[r], max_j S[j, r])
    alpha[r]  = 2**(m[r] - m'[r])
    P[j, r]   = 2**(S[j, r] - m'[r])
    den'[r]   = den[r] alpha[r] + sum_j P[j, r]
    out'[d, r] = out[d, r] alpha[r] + sum_j V[j, d] P[j, r]

and at the end ``output[r, d] = out[d, r] / den[r]``, ``lse[r] = m[r] + log2 den[r]`` (base 2, as
``merge_state`` of the paged KV cache expects; a row that sees no key gives 0 and ``lse = -5e4``).

Everything is transposed so that a lane is a query row: max, exponential and sum run down the
columns without any horizontal reduction, and neither K nor V has to be transposed: their elements
are broadcast. Query rows of one tile are the ``group`` heads that share one KV head times
consecutive positions, ``r = position * group + head``. K and V tiles are converted to float32 once
per tile; both products are the same register-tiled micro-kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from tir_schedules.cpu.attention_rope import Rotate, rotated
from tir_schedules.cpu.attention_spare import tell_lse, told_heads
from tir_schedules.cpu.vector_math import LOG2_E, exp2, tanh
from tir_schedules.cpu.vector_unit import VectorUnit

# The running maximum starts here, and a row without keys reports it.
NO_SCORE = -5e4
# A masked score: so far below NO_SCORE that its exponential is exactly zero.
MASKED = -1e9
# The micro-kernels' accumulators: a quarter of the registers high, this many vectors wide.
VECTORS = 3


@dataclass(frozen=True)
class Heads:
    """The shape of one attention layer: ``num_q`` query heads over ``num_kv`` KV heads.

    With ``spare`` the last query head of every group is none: its place in the output tells the
    ``lse`` of the others, which the runtime keeps to itself (``attention_spare.py``).
    """

    num_q: int
    num_kv: int
    d_qk: int
    d_v: int
    dtype: str
    spare: bool = False

    def __post_init__(self) -> None:
        if self.spare and 2 * (self.group - 1) > self.d_v:
            raise ValueError(f"a spare head holds two numbers for every other of its group: {self}")
        if self.num_q % self.num_kv or self.d_qk % 4 or self.d_v % 4:
            raise ValueError(f"whole groups of heads and head sizes divisible by 4 only: {self}")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_q // self.num_kv


def zigzag(index: Any, count: Any) -> Any:
    """0, n-1, 1, n-2, ...: any contiguous share of a causal triangle then has the same work."""
    return T.if_then_else(index % 2 == 0, index // 2, count - 1 - index // 2)


def score_scale(sm_scale: Any) -> Any:
    """From ``q k`` to base-2 scores; the sign of ``sm_scale`` only says if the layer is local."""
    return T.fabs(sm_scale) * T.float32(LOG2_E)


def first_in_window(sm_scale: Any, query: Any, offset: Any, window: int | None) -> Any:
    """The first key that a query at position ``query`` sees; key ``j`` has ``offset + j``.

    A negative ``sm_scale`` marks a local layer, which sees the last ``window`` positions, its own
    included: one set of kernels so serves models that mix local and global layers, whatever layer
    kinds the runtime's cache knows.
    """
    if window is None:
        return T.int32(0)
    return T.if_then_else(sm_scale < T.float32(0), T.max(query - offset - (window - 1), 0), 0)


def inverse(total: Any) -> Any:
    """``1 / total``, or 0 for a row that saw no key."""
    return T.if_then_else(total > T.float32(0), T.float32(1) / total, T.float32(0))


class Tile:
    """The statements of one attention tile for given heads and vector shape, as TIR macros.

    ``rows`` query rows (lanes) and ``keys`` keys make a tile. The macros work on the scratch
    buffers that ``alloc`` declares inside the caller's block.
    """

    def __init__(
        self,
        heads: Heads,
        unit: VectorUnit,
        rope_scaling: dict[str, Any] | None = None,
        softcap: float | None = None,
    ) -> None:
        self.heads, self.rows, self.keys = heads, VECTORS * unit.lanes, 64
        rope = rotated(heads.d_qk, rope_scaling or {})
        self.find = _find(heads.group, self.rows)
        self.start = _start(heads, self.rows)
        self.load_q = _load_q(heads, self.rows, rope)
        self.load_k = _load_row(heads.d_qk, unit.lanes)
        self.rotate_k = _rotate_row(heads.d_qk, rope)
        self.load_v = _load_row(heads.d_v, unit.lanes)
        self.dot = _dot(unit)
        self.mask = _mask(unit)
        self.soften = _soften(unit, softcap)
        self.softmax = _softmax(unit)
        self.weigh = _weigh(unit, math.gcd(unit.registers // 4, heads.d_v))
        self.store = _store(heads, self.rows)

    def alloc(self) -> tuple[Any, ...]:
        """Scratch ``Q [d, r], K [j, d], V [j, d], S [j, r], out [d, r], m, den, alpha [r]``."""
        d_qk, d_v = self.heads.d_qk, self.heads.d_v
        matrices = [
            (d_qk, self.rows),
            (self.keys, d_qk),
            (self.keys, d_v),
            (self.keys, self.rows),
            (d_v, self.rows),
        ]
        shapes = [*matrices, (self.rows,), (self.rows,), (self.rows,)]
        return tuple(T.sblock_alloc_buffer(shape, "float32") for shape in shapes)

    def slots(self, total: Any, batch: Any) -> Any:
        """An upper bound of the query tiles of ``batch`` sequences, ``total`` positions long."""
        return batch + T.floordiv(total * self.heads.group, self.rows)


def _find(group: int, rows: int) -> Any:
    @T.macro
    def find(where: T.Buffer, q_indptr: T.Buffer, batch: T.int32, slot: T.int32) -> None:
        """``where = (sequence, tile)`` of the slot; sequence = batch when there is none."""
        where[0] = batch
        where[1] = slot
        for b in T.serial(batch):
            if where[0] == batch:
                tiles: T.let[T.int32] = T.ceildiv((q_indptr[b + 1] - q_indptr[b]) * group, rows)
                if where[1] < tiles:
                    where[0] = b
                else:
                    where[1] = where[1] - tiles

    return find


def _start(heads: Heads, rows: int) -> Any:
    d_v = heads.d_v

    @T.macro
    def start(out: T.Buffer, m: T.Buffer, den: T.Buffer) -> None:
        for r in T.vectorized(rows):
            m[r] = T.float32(NO_SCORE)
            den[r] = T.float32(0)
        for d in T.serial(d_v):
            for r in T.vectorized(rows):
                out[d, r] = T.float32(0)

    return start


def at(buffer: Any, row: tuple[Any, ...], d: Any) -> Any:
    """Element ``d`` of a row of ``buffer``."""
    return buffer[(*row, d)]


def _load_row(depth: int, lanes: int) -> Any:
    lanes = math.gcd(lanes, depth)

    @T.macro
    def load_row(tile: T.Buffer, j: T.int32, source: T.Buffer, row: T.int32) -> None:
        """Convert one key or value row to float32."""
        for c in T.serial(depth // lanes):
            for i in T.vectorized(lanes):
                tile[j, c * lanes + i] = T.Cast("float32", at(source, row, c * lanes + i))

    return load_row


def _rotate_row(depth: int, rope: Rotate) -> Any:
    @T.macro
    def rotate_row(
        tile: T.Buffer, j: T.int32, source: T.Buffer, row: T.int32,
        pos: T.int32, theta: T.float32, scale: T.float32,
    ) -> None:  # fmt: skip
        """The same for a key that is stored without its rotary embedding."""
        for d in T.serial(depth):
            tile[j, d] = rope(source, row, pos, d, theta, scale)

    return rotate_row


def _load_q(heads: Heads, rows: int, rope: Rotate) -> Any:
    group, d_qk = heads.group, heads.d_qk

    @T.macro
    def load_q(
        Q: T.Buffer, q: T.Buffer, q_pos: T.Buffer,
        begin: T.int32, length: T.int32, tile: T.int32, head: T.int32,
        rotary_mode: T.int32, theta: T.float32, rope_scale: T.float32, scale: T.float32,
    ) -> None:  # fmt: skip
        """Transpose the tile's query rows, times ``scale``; rows past the end are zero."""
        for r in T.serial(rows):
            pos: T.let[T.int32] = begin + (tile * rows + r) // group
            h: T.let[T.int32] = head * group + (tile * rows + r) % group
            if pos >= begin + length:
                for d in T.serial(d_qk):
                    Q[d, r] = T.float32(0)
            else:
                if rotary_mode == 1:
                    for d in T.serial(d_qk):
                        Q[d, r] = rope(q, (pos, h), q_pos[pos], d, theta, rope_scale) * scale
                else:
                    for d in T.serial(d_qk):
                        Q[d, r] = T.Cast("float32", q[pos, h, d]) * scale

    return load_q


def _dot(unit: VectorUnit) -> Any:
    tile, vectors, lanes = unit.registers // 4, VECTORS, unit.lanes
    width = vectors * lanes

    @T.macro
    def dot(K: T.Buffer, Q: T.Buffer, S: T.Buffer, keys: T.int32) -> None:
        """``S[j, r] = sum_d K[j, d] Q[d, r]`` for ``keys`` rounded up to the register tile."""
        for jo in T.serial(T.ceildiv(keys, tile)):
            with T.sblock("dot"):
                T.reads()
                T.writes()
                acc = T.sblock_alloc_buffer((tile, width), "float32")
                for i in T.unroll(tile):
                    for v in T.unroll(vectors):
                        for r in T.vectorized(lanes):
                            acc[i, v * lanes + r] = T.float32(0)
                for d in T.serial(Q.shape[0]):
                    for i in T.unroll(tile):
                        for v in T.unroll(vectors):
                            for r in T.vectorized(lanes):
                                acc[i, v * lanes + r] += K[jo * tile + i, d] * Q[d, v * lanes + r]
                for i in T.unroll(tile):
                    for v in T.unroll(vectors):
                        for r in T.vectorized(lanes):
                            S[jo * tile + i, v * lanes + r] = acc[i, v * lanes + r]

    return dot


def _weigh(unit: VectorUnit, tile: int) -> Any:
    vectors, lanes, width = VECTORS, unit.lanes, VECTORS * unit.lanes

    @T.macro
    def weigh(V: T.Buffer, P: T.Buffer, out: T.Buffer, alpha: T.Buffer, keys: T.int32) -> None:
        """``out[d, r] = out[d, r] alpha[r] + sum_j V[j, d] P[j, r]``."""
        for do in T.serial(out.shape[0] // tile):
            with T.sblock("weigh"):
                T.reads()
                T.writes()
                acc = T.sblock_alloc_buffer((tile, width), "float32")
                for i in T.unroll(tile):
                    for v in T.unroll(vectors):
                        for r in T.vectorized(lanes):
                            acc[i, v * lanes + r] = (
                                out[do * tile + i, v * lanes + r] * alpha[v * lanes + r]
                            )
                for j in T.serial(keys):
                    for i in T.unroll(tile):
                        for v in T.unroll(vectors):
                            for r in T.vectorized(lanes):
                                acc[i, v * lanes + r] += V[j, do * tile + i] * P[j, v * lanes + r]
                for i in T.unroll(tile):
                    for v in T.unroll(vectors):
                        for r in T.vectorized(lanes):
                            out[do * tile + i, v * lanes + r] = acc[i, v * lanes + r]

    return weigh


def _mask(unit: VectorUnit) -> Any:
    vectors, lanes = VECTORS, unit.lanes

    @T.macro
    def mask(S: T.Buffer, lo: T.Buffer, hi: T.Buffer, first: T.int32, keys: T.int32) -> None:
        """Row ``r`` sees the keys ``lo[r] <= first + j < hi[r]``."""
        for j in T.serial(keys):
            for v in T.unroll(vectors):
                for r in T.vectorized(lanes):
                    S[j, v * lanes + r] = T.Select(
                        T.And(first + j >= lo[v * lanes + r], first + j < hi[v * lanes + r]),
                        S[j, v * lanes + r],
                        T.float32(MASKED),
                    )

    return mask


def _soften(unit: VectorUnit, softcap: float | None) -> Any:
    vectors, lanes = VECTORS, unit.lanes
    cap = (softcap or 1.0) * LOG2_E

    @T.macro
    def soften(S: T.Buffer, keys: T.int32) -> None:
        """``s = cap tanh(s / cap)``, the cap in the base-2 unit of the scores."""
        for j in T.serial(keys):
            for v in T.unroll(vectors):
                for r in T.vectorized(lanes):
                    S[j, v * lanes + r] = T.float32(cap) * tanh(
                        S[j, v * lanes + r] * T.float32(1 / cap)
                    )

    @T.macro
    def leave(S: T.Buffer, keys: T.int32) -> None:
        T.evaluate(0)

    return leave if softcap is None else soften


def _softmax(unit: VectorUnit) -> Any:
    vectors, lanes = VECTORS, unit.lanes

    @T.macro
    def softmax(S: T.Buffer, m: T.Buffer, den: T.Buffer, alpha: T.Buffer, keys: T.int32) -> None:
        """Scores to weights ``2**(S - m)``; ``alpha`` rescales the sums of earlier tiles."""
        for v in T.unroll(vectors):
            with T.sblock("softmax"):
                T.reads()
                T.writes()
                top = T.sblock_alloc_buffer((lanes,), "float32")
                total = T.sblock_alloc_buffer((lanes,), "float32")
                for r in T.vectorized(lanes):
                    top[r] = m[v * lanes + r]
                for j in T.serial(keys):
                    for r in T.vectorized(lanes):
                        top[r] = T.max(top[r], S[j, v * lanes + r])
                for r in T.vectorized(lanes):
                    alpha[v * lanes + r] = exp2(m[v * lanes + r] - top[r])
                    m[v * lanes + r] = top[r]
                    total[r] = den[v * lanes + r] * alpha[v * lanes + r]
                for j in T.serial(keys):
                    for r in T.vectorized(lanes):
                        S[j, v * lanes + r] = exp2(S[j, v * lanes + r] - top[r])
                        total[r] += S[j, v * lanes + r]
                for r in T.vectorized(lanes):
                    den[v * lanes + r] = total[r]

    return softmax


def _store(heads: Heads, rows: int) -> Any:
    group, d_v, dtype = heads.group, heads.d_v, heads.dtype
    real, tell = told_heads(heads), tell_lse(heads)

    @T.macro
    def store(
        output: T.Buffer, lse: T.Buffer, out: T.Buffer, m: T.Buffer, den: T.Buffer,
        begin: T.int32, length: T.int32, tile: T.int32, head: T.int32,
    ) -> None:  # fmt: skip
        """Write ``out / den`` and ``m + log2 den`` of the tile's rows that lie in the sequence."""
        for r in T.serial(T.min(rows, length * group - tile * rows)):
            pos: T.let[T.int32] = begin + (tile * rows + r) // group
            h: T.let[T.int32] = head * group + (tile * rows + r) % group
            scale: T.let[T.float32] = inverse(den[r])
            if h % group < real:
                for d in T.serial(d_v):
                    output[pos, h, d] = T.Cast(dtype, out[d, r] * scale)
            lse[pos, h] = T.if_then_else(
                den[r] > T.float32(0), m[r] + T.log2(den[r]), T.float32(NO_SCORE)
            )
            tell(output, lse, pos, h)

    return store

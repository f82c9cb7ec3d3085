"""The attention kernels of the paged KV cache against float64 numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tvm
from attention_reference import (
    NO_KEY,
    ROUNDING,
    UNIT,
    Array,
    Pages,
    attend,
    causal,
    compiled,
    compiled_for,
    heads,
    random,
    rotate,
)

from tir_schedules.cpu.attention_decode import decode_paged
from tir_schedules.cpu.attention_prefill import prefill_paged, prefill_ragged
from tir_schedules.cpu.attention_tree import tree_paged, tree_ragged
from tir_schedules.cpu.merge_state import merge_state
from tir_schedules.cpu.vector_unit import VectorUnit

CASES = [
    (4, 2, 64, "float32"),
    (4, 2, 64, "float16"),
    (4, 2, 64, "bfloat16"),
    (6, 6, 80, "float16"),
    (7, 1, 128, "float16"),
    (2, 1, 256, "float32"),
    (16, 2, 96, "float32"),
    (4, 4, 100, "float32"),
]
LSE = 2e-5
LOCAL = 37


def indptr(lengths: list[int]) -> Array:
    return np.cumsum([0, *lengths]).astype(np.int32)


def blank(n: int, num_q: int, d: int, q: Array) -> tuple[Array, Array]:
    """Output and lse full of what no kernel may leave there."""
    return np.full((n, num_q, d), np.nan, q.dtype), np.full((n, num_q), np.nan, np.float32)


def check(got: tuple[Array, Array], want: list[tuple[Array, Array]], dtype: str) -> None:
    out, lse = (np.concatenate(parts) for parts in zip(*want, strict=True))
    assert abs(got[0].astype(np.float64) - out).max() < ROUNDING[dtype]
    assert abs(got[1] - lse).max() < LSE


@pytest.mark.parametrize(("num_q", "num_kv", "d", "dtype"), CASES)
def test_ragged(num_q: int, num_kv: int, d: int, dtype: str) -> None:
    rng, lengths = np.random.default_rng(0), [3, 1, 150, 0, 64, 33]
    n, at = sum(lengths), indptr(lengths)
    q, k, v = (random(rng, dtype, n, h, d) for h in (num_q, num_kv, num_kv))
    got = blank(n, num_q, d, q)
    kernel = compiled(prefill_ragged, heads(num_q, num_kv, d, dtype), UNIT, ())
    position, offset = np.zeros(n, np.int32), np.zeros(len(lengths), np.int32)
    kernel(q, at, k, v, at, position, offset, *got, 1, 0, 1.0, 1e4, d**-0.5)
    want = [attend(q[a:b], k[a:b], v[a:b], causal(b - a, b - a), d**-0.5) for a, b in pairwise(at)]
    check(got, want, dtype)


def test_ragged_without_causal_mask_and_with_more_keys() -> None:
    rng, lengths, more = np.random.default_rng(1), [5, 70], [90, 71]
    q = random(rng, "float32", 75, 4, 64)
    k, v = (random(rng, "float32", 161, 2, 64) for _ in range(2))
    kernel = compiled(prefill_ragged, heads(4, 2, 64, "float32"), UNIT, ())
    position, offset, kv = np.zeros(75, np.int32), np.zeros(2, np.int32), indptr(more)
    for mask in (0, 1):
        got = blank(75, 4, 64, q)
        kernel(q, indptr(lengths), k, v, kv, position, offset, *got, mask, 0, 1.0, 1e4, 0.125)
        want = []
        for b, (i, j) in enumerate(((0, 5), (5, 75))):
            m = more[b]
            seen = causal(j - i, m) if mask else np.ones((j - i, m), bool)
            rows = slice(kv[b], kv[b + 1])
            want.append(attend(q[i:j], k[rows], v[rows], seen, 0.125))
        check(got, want, "float32")


def test_ragged_softcap() -> None:
    rng = np.random.default_rng(2)
    q, k, v = (random(rng, "float32", 40, h, 64) * 4 for h in (4, 2, 2))
    got, at = blank(40, 4, 64, q), indptr([40])
    kernel = compiled(prefill_ragged, heads(4, 2, 64, "float32"), UNIT, (), 5.0)
    position, offset = np.zeros(40, np.int32), np.zeros(1, np.int32)
    kernel(q, at, k, v, at, position, offset, *got, 1, 0, 1.0, 1e4, 0.5)
    check((got[0] / 4, got[1]), [_quarter(attend(q, k, v, causal(40, 40), 0.5, 5.0))], "float32")


def _quarter(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    return pair[0] / 4, pair[1]


@pytest.mark.parametrize(("num_q", "num_kv", "d", "dtype"), CASES)
def test_paged_prefill(num_q: int, num_kv: int, d: int, dtype: str) -> None:
    rng, lengths, cached = np.random.default_rng(3), [3, 1, 50, 20], [17, 300, 0, 64]
    n, at, pages = sum(lengths), indptr(lengths), Pages(rng, cached, num_kv, d, dtype)
    q = random(rng, dtype, n, num_q, d)
    kernel = compiled(prefill_paged, heads(num_q, num_kv, d, dtype), UNIT, ())
    offset, position = np.zeros(4, np.int32), np.zeros(n, np.int32)
    table = (pages.indptr, pages.values, pages.last, offset, position)
    got = blank(n, num_q, d, q)
    kernel(q, at, pages.data, *table, *got, 0, 0, 1.0, 1e4, d**-0.5)
    want = [
        attend(q[at[b] : at[b + 1]], *pages.sequence(b), np.ones((m, c), bool), d**-0.5)
        for b, (m, c) in enumerate(zip(lengths, cached, strict=True))
    ]
    check(got, want, dtype)
    assert (got[1][4:54] == NO_KEY).all(), "a sequence without cached keys must not count"


def test_paged_prefill_causal() -> None:
    rng, pages = (
        np.random.default_rng(4),
        Pages(np.random.default_rng(5), [90, 40], 2, 64, "float32"),
    )
    q, at = random(rng, "float32", 50, 4, 64), indptr([20, 30])
    kernel = compiled(prefill_paged, heads(4, 2, 64, "float32"), UNIT, ())
    offset, position, got = np.zeros(2, np.int32), np.zeros(50, np.int32), blank(50, 4, 64, q)
    table = (pages.indptr, pages.values, pages.last, offset, position)
    kernel(q, at, pages.data, *table, *got, 1, 0, 1.0, 1e4, 0.125)
    want = [
        attend(q[:20], *pages.sequence(0), causal(20, 90), 0.125),
        attend(q[20:], *pages.sequence(1), causal(30, 40), 0.125),
    ]
    check(got, want, "float32")


def test_chunked_prefill_is_ragged_and_paged_merged() -> None:
    """Second chunks of two sequences: new keys, cached keys, merge; equal to attention at once."""
    rng, cached, chunk = np.random.default_rng(6), [75, 16], [21, 90]
    pages = Pages(rng, cached, 2, 64, "float32")
    n, at = sum(chunk), indptr(chunk)
    q, k, v = (random(rng, "float32", n, h, 64) for h in (4, 2, 2))
    shape, zero = heads(4, 2, 64, "float32"), np.zeros(2, np.int32)
    position, new, old = np.zeros(n, np.int32), blank(n, 4, 64, q), blank(n, 4, 64, q)
    rest = (1.0, 1e4, 0.125)
    ragged = compiled(prefill_ragged, shape, UNIT, ())
    ragged(q, at, k, v, at, position, zero, *new, 1, 0, *rest)
    table = (pages.indptr, pages.values, pages.last, zero, position)
    compiled(prefill_paged, shape, UNIT, ())(q, at, pages.data, *table, *old, 0, 0, *rest)
    compiled(merge_state, shape, UNIT)(*new, *old)
    want = []
    for b, (i, j) in enumerate(((0, 21), (21, 111))):
        key, value = pages.sequence(b)
        key, value = np.concatenate([key, k[i:j]]), np.concatenate([value, v[i:j]])
        want.append(attend(q[i:j], key, value, causal(j - i, len(key)), 0.125))
    check(new, want, "float32")


@pytest.mark.parametrize(("num_q", "num_kv", "d", "dtype"), CASES)
def test_decode(num_q: int, num_kv: int, d: int, dtype: str) -> None:
    rng, lengths = np.random.default_rng(7), [1, 700, 0, 256, 31]
    pages, q = Pages(rng, lengths, num_kv, d, dtype), random(rng, dtype, 5, num_q, d)
    kernel = compiled(decode_paged, heads(num_q, num_kv, d, dtype), UNIT, ())
    zero, got = np.zeros(5, np.int32), blank(5, num_q, d, q)
    table = (pages.indptr, pages.values, pages.last, zero, zero)
    kernel(q, pages.data, *table, *got, 0, 1.0, 1e4, d**-0.5)
    want = [
        attend(q[b : b + 1], *pages.sequence(b), np.ones((1, m), bool), d**-0.5)
        for b, m in enumerate(lengths)
    ]
    check(got, want, dtype)


def sink_and_window(pages: Pages, b: int, start: int, sink: int) -> tuple[Array, Array]:
    k, v = pages.sequence(b)
    rows = np.r_[0:sink, start : len(k)]
    return k[rows], v[rows]


def test_sliding_window_with_sink() -> None:
    """Keys ``0..sink`` and ``start..end`` of the pages count, for decode and paged prefill."""
    rng, lengths = np.random.default_rng(8), [500, 40, 300]
    pages, starts, sinks = Pages(rng, lengths, 2, 64, "float16"), [137, 0, 290], [4, 0, 20]
    info = np.array([pages.last, starts, sinks], np.int32)
    shape, zero = heads(4, 2, 64, "float16"), np.zeros(3, np.int32)
    table = (pages.indptr, pages.values, info, zero)
    q, got = random(rng, "float16", 3, 4, 64), blank(3, 4, 64, np.zeros(0, np.float16))
    decode = compiled(decode_paged, shape, UNIT, (), None, True)
    decode(q, pages.data, *table, zero, *got, 0, 1.0, 1e4, 0.125)
    kept = [sink_and_window(pages, b, starts[b], sinks[b]) for b in range(3)]
    all_keys = [np.ones((1, len(k)), bool) for k, _ in kept]
    want = [attend(q[b : b + 1], *kept[b], all_keys[b], 0.125) for b in range(3)]
    check(got, want, "float16")

    counts, q = [5, 1, 60], random(rng, "float16", 66, 4, 64)
    at, got = indptr(counts), blank(66, 4, 64, q)
    prefill = compiled(prefill_paged, shape, UNIT, (), None, 1024)
    position = np.zeros(66, np.int32)
    prefill(q, at, pages.data, *table, position, *got, 0, 0, 1.0, 1e4, 0.125)
    want = [
        attend(q[at[b] : at[b + 1]], *kept[b], np.ones((m, len(kept[b][0])), bool), 0.125)
        for b, m in enumerate(counts)
    ]
    check(got, want, "float16")


def test_layer_window_of_the_cache() -> None:
    """``mha_sliding`` prefill: query ``i`` of the chunk sees the last ``window - i - 1`` keys."""
    rng = np.random.default_rng(9)
    pages, q = Pages(rng, [200], 2, 64, "float32"), random(rng, "float32", 70, 4, 64)
    info = np.array([pages.last, [0], [0]], np.int32)
    kernel = compiled(prefill_paged, heads(4, 2, 64, "float32"), UNIT, (), None, 64)
    zero, position, got = np.zeros(1, np.int32), np.zeros(70, np.int32), blank(70, 4, 64, q)
    table = (pages.indptr, pages.values, info, zero, position)
    kernel(q, indptr([70]), pages.data, *table, *got, 1, 0, 1.0, 1e4, 0.125)
    seen = np.arange(200)[None, :] >= 200 - np.maximum(64 - np.arange(70) - 1, 0)[:, None]
    check(got, [attend(q, *pages.sequence(0), seen, 0.125)], "float32")


@pytest.mark.parametrize(("cached", "chunk"), [(150, 90), (30, 60), (36, 5), (5, 100)])
def test_local_layer_by_the_sign_of_the_scale(cached: int, chunk: int) -> None:
    """With ``window`` a negative scale keeps the last positions, the query's own included."""
    rng, shape = np.random.default_rng(10), heads(4, 2, 64, "float32")
    pages = Pages(rng, [cached], 2, 64, "float32")
    q, k, v = (random(rng, "float32", chunk, h, 64) for h in (4, 2, 2))
    position = np.arange(cached, cached + chunk, dtype=np.int32)
    at, past, rest = indptr([chunk]), np.array([cached], np.int32), (0, 1.0, 1e4)
    for scale in (-0.125, 0.125):
        window = LOCAL if scale < 0 else 10**6
        new, old = blank(chunk, 4, 64, q), blank(chunk, 4, 64, q)
        ragged = compiled(prefill_ragged, shape, UNIT, (), None, LOCAL)
        ragged(q, at, k, v, at, position, past, *new, 1, *rest, scale)
        paged = compiled(prefill_paged, shape, UNIT, (), None, None, 16, LOCAL)
        zero = np.zeros(1, np.int32)
        table = (pages.indptr, pages.values, pages.last, zero, position)
        paged(q, at, pages.data, *table, *old, 0, *rest, scale)
        distance = position[:, None] - np.arange(cached + chunk)[None, :]
        seen = (distance >= 0) & (distance < window)
        check(new, [attend(q, k, v, seen[:, cached:], 0.125)], "float32")
        check(old, [attend(q, *pages.sequence(0), seen[:, :cached], 0.125)], "float32")

        last, one = np.array([cached - 1], np.int32), blank(1, 4, 64, q)
        decode = compiled(decode_paged, shape, UNIT, (), None, False, 16, LOCAL)
        decode(q[:1], pages.data, *table[:4], last, *one, *rest, scale)
        near = cached - 1 - np.arange(cached)[None, :] < window
        check(one, [attend(q[:1], *pages.sequence(0), near, 0.125)], "float32")


def test_inline_rotary_embedding() -> None:
    """``rotary_mode 1``: keys are cached unrotated, key ``j`` stands at ``offset + j``."""
    rng, shape, past = np.random.default_rng(11), heads(4, 2, 64, "float32"), 40
    pages = Pages(rng, [past], 2, 64, "float32")
    q, k, v = (random(rng, "float32", 30, h, 64) for h in (4, 2, 2))
    position, at = np.arange(past, past + 30, dtype=np.int32), indptr([30])
    offset, zero, rest = np.array([past], np.int32), np.zeros(1, np.int32), (1, 1.0, 1e4, 0.125)
    got, turned = blank(30, 4, 64, q), rotate(q, position)
    ragged = compiled(prefill_ragged, shape, UNIT, ())
    ragged(q, at, k, v, at, position, offset, *got, 1, *rest)
    want = attend(turned, rotate(k, position), v, causal(30, 30), 0.125)
    check((got[0], got[1]), [want], "bfloat16")
    assert abs(got[0] - want[0]).max() < 2e-5

    key, value = pages.sequence(0)
    key = rotate(key, np.arange(past))
    table = (pages.indptr, pages.values, pages.last, zero, position)
    got = blank(30, 4, 64, q)
    compiled(prefill_paged, shape, UNIT, ())(q, at, pages.data, *table, *got, 0, *rest)
    want = attend(turned, key, value, np.ones((30, past), bool), 0.125)
    assert abs(got[0] - want[0]).max() < 2e-5

    got = blank(1, 4, 64, q)
    decode = compiled(decode_paged, shape, UNIT, ())
    decode(q[:1], pages.data, *table[:4], position[:1], *got, *rest)
    assert abs(got[0] - want[0][:1]).max() < 2e-5


def tree(rng: np.random.Generator, nodes: int) -> tuple[Array, Array]:
    """A random tree in parent-first order: ``(enter, leave)`` and who sees whom."""
    parent = [-1] + [int(rng.integers(0, i)) for i in range(1, nodes)]
    sees = np.eye(nodes, dtype=bool)
    for i in range(1, nodes):
        sees[i] |= sees[parent[i]]
    order, clock = np.zeros((nodes, 2), np.int32), 0
    stack = [(0, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order[node, 1] = clock
            continue
        order[node, 0], clock = clock, clock + 1
        stack.append((node, True))
        stack += [(child, False) for child in range(nodes) if parent[child] == node]
    return order, sees


def test_token_trees() -> None:
    rng, sizes, past = np.random.default_rng(12), [9, 1, 40], [50, 0, 13]
    trees = [tree(rng, size) for size in sizes]
    order, at = np.concatenate([t[0] for t in trees]), indptr(sizes)
    n, shape = sum(sizes), heads(6, 2, 64, "float32")
    q, k, v = (random(rng, "float32", n, h, 64) for h in (6, 2, 2))
    position, got = np.zeros(n, np.int32), blank(n, 6, 64, q)
    ragged = compiled(tree_ragged, shape, UNIT, ())
    ragged(q, at, k, v, at, position, at, order, *got, 0, 1.0, 1e4, 0.125)
    spans = list(pairwise(at))
    want = [attend(q[i:j], k[i:j], v[i:j], trees[b][1], 0.125) for b, (i, j) in enumerate(spans)]
    check(got, want, "float32")

    pages = Pages(rng, [s + p for s, p in zip(sizes, past, strict=True)], 2, 64, "float32")
    got, zero = blank(n, 6, 64, q), np.zeros(3, np.int32)
    table = (pages.indptr, pages.values, pages.last, zero, position)
    paged = compiled(tree_paged, shape, UNIT, ())
    paged(q, at, pages.data, *table, *got, 0, 1.0, 1e4, 0.125, at, order)
    want = []
    for b, (i, j) in enumerate(spans):
        seen = np.concatenate([np.ones((j - i, past[b]), bool), trees[b][1]], 1)
        want.append(attend(q[i:j], *pages.sequence(b), seen, 0.125))
    check(got, want, "float32")


def test_shapes_that_no_kernel_has_are_refused() -> None:
    for num_q, num_kv, d in ((6, 4, 64), (4, 2, 66)):
        with pytest.raises(ValueError, match="whole groups"):
            heads(num_q, num_kv, d, "float32")


@pytest.mark.parametrize("level", ["x86-64-v3", "x86-64"])
def test_narrower_vectors(level: str) -> None:
    """The same kernels for AVX2 and for SSE2 alone."""
    if tvm.target.codegen.llvm_get_system_x86_vendor() == "unknown":
        pytest.skip("not an x86 machine")
    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": level}
    )
    shape, registers = heads(4, 2, 80, "float32"), VectorUnit.of(target)
    assert registers.lanes == {"x86-64-v3": 8, "x86-64": 4}[level]
    rng, n = np.random.default_rng(13), 70
    q, k, v = (random(rng, "float32", n, h, 80) for h in (4, 2, 2))
    at, position, zero = indptr([n]), np.zeros(n, np.int32), np.zeros(1, np.int32)
    got = blank(n, 4, 80, q)
    ragged = compiled_for(target, prefill_ragged, shape, registers, ())
    ragged(q, at, k, v, at, position, zero, *got, 1, 0, 1.0, 1e4, 0.125)
    check(got, [attend(q, k, v, causal(n, n), 0.125)], "float32")
    q = random(rng, "float32", 1, 8, 80)  # more rows to one KV head than half of the registers hold
    pages, got = Pages(rng, [300], 1, 80, "float32"), blank(1, 8, 80, q)
    shape = heads(8, 1, 80, "float32")
    decode = compiled_for(target, decode_paged, shape, registers, ())
    table = (pages.indptr, pages.values, pages.last, zero, zero)
    decode(q, pages.data, *table, *got, 0, 1.0, 1e4, 0.125)
    check(got, [attend(q, *pages.sequence(0), np.ones((1, 300), bool), 0.125)], "float32")

"""The attention kernels of the GPU against float64: `cuda_on_cpu.h` runs their source here.

Every case runs with threads in rising and in falling order. What no kernel may read, slots of the
last page that were never written, is NaN; what it must write is NaN before.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tvm
from attention_reference import NO_KEY, ROUNDING, Array, Pages, attend, causal, random
from cuda_on_cpu import COMPILER, Program, cuda_target
from test_attention import LSE, indptr, tree

from tir_schedules.gpu.attention_decode import decode
from tir_schedules.gpu.attention_function import Heads
from tir_schedules.gpu.attention_merge import merge_state
from tir_schedules.gpu.attention_prefill import (
    prefill_paged,
    prefill_ragged,
    tree_paged,
    tree_ragged,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

LOCAL = 37
PLAIN = Heads(4, 2, 16, "float16")
# gemma2's two switches and gpt-oss's sinks
MIXED = Heads(8, 1, 48, "bfloat16", window=LOCAL, cap=5.0, spare=True)
# P is rounded to the half type; twice the output's own rounding.
LIMIT = {dtype: 2 * ROUNDING[dtype] for dtype in ("float16", "bfloat16")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def build(make: Any, *args: Any) -> Program:
        module = tvm.IRModule({"main": make(*args).with_attr("global_symbol", "main")})
        return Program(module, cuda_target("sm_80"), tmp_path_factory.mktemp("cuda"))

    return build


def run(program: Program, heads: Heads, arguments: list[Any], rows: int) -> tuple[Array, Array]:
    """`arguments` with `...` where output and lse belong."""
    results = []
    for backwards in (False, True):
        out = np.full((rows, heads.num_q, heads.d), np.nan, arguments[0].dtype)
        lse = np.full((rows, heads.num_q), np.nan, np.float32)
        at = next(i for i, a in enumerate(arguments) if a is ...)
        program.run([*arguments[:at], out, lse, *arguments[at + 1 :]], backwards)
        results.append((out.astype(np.float64), lse))
    assert np.array_equal(results[0][0], results[1][0], equal_nan=True)
    assert np.array_equal(results[0][1], results[1][1])
    return results[0]


def check(got: tuple[Array, Array], want: list[tuple[Array, Array]], heads: Heads) -> None:
    """Heads that attend against `want`; a spare head tells the others' lse."""
    out, lse = (np.concatenate(parts) for parts in zip(*want, strict=True))
    real = [h for h in range(heads.num_q) if not heads.spare or h % heads.group < heads.group - 1]
    assert abs(got[0] - out)[:, real].max() < LIMIT[heads.dtype]
    assert abs(got[1] - lse)[:, real].max() < LSE
    if heads.spare:
        told = got[0][:, -1, : 2 * len(real)].reshape(-1, len(real), 2).sum(-1)
        assert abs(told - got[1][:, real]).max() < 1e-3 + 2.0**-16 * abs(got[1]).max()


def cached(rng: np.random.Generator, lengths: list[int], heads: Heads) -> Pages:
    pages = Pages(rng, lengths, heads.num_kv, heads.d, heads.dtype)
    for b, length in enumerate(lengths):
        if length % 16:
            pages.data[pages.values[pages.indptr[b + 1] - 1], :, :, length % 16 :] = np.nan
    return pages


def rest(scale: float) -> tuple[Any, ...]:
    return 0, 1.0, 1e4, scale


@pytest.mark.parametrize(
    ("heads", "scale"), [(MIXED, 0.5), (MIXED, -0.5), (Heads(9, 1, 112, "float16"), 0.125)]
)
def test_decode(heads: Heads, scale: float, built: Any) -> None:
    """Parts of several sequences, one of them empty, joined by a second kernel."""
    rng, lengths = np.random.default_rng(0), [1, 300, 0, 128, 31]
    pages = cached(rng, lengths, heads)
    q, zero = random(rng, heads.dtype, 5, heads.num_q, heads.d), np.zeros(5, np.int32)
    position = np.array([max(n - 1, 0) for n in lengths], np.int32)
    table = [pages.data, pages.indptr, pages.values, pages.last, zero, position]
    got = run(built(decode, heads), heads, [q, *table, ..., *rest(scale)], 5)
    window = heads.window if scale < 0 and heads.window else 10**6
    want = [
        attend(
            q[b : b + 1], *pages.sequence(b), (np.arange(n) > n - 1 - window)[None],
            abs(scale), heads.cap,
        )
        for b, n in enumerate(lengths)
    ]  # fmt: skip
    check(got, want, heads)
    assert (got[1][2] == NO_KEY).all()


def test_sliding_window_with_sink(built: Any) -> None:
    """Slots before the sink's end and from the window's begin on count."""
    rng, lengths, starts, sinks = np.random.default_rng(1), [150, 20], [137, 0], [4, 0]
    pages = cached(rng, lengths, PLAIN)
    info = np.array([pages.last, starts, sinks], np.int32)
    zero = np.zeros(2, np.int32)
    table = [pages.data, pages.indptr, pages.values, info, zero]
    slots = [np.arange(n) for n in lengths]
    seen = [((s < sinks[b]) | (s >= starts[b]))[None] for b, s in enumerate(slots)]
    q = random(rng, "float16", 2, 4, 16)
    got = run(built(decode, PLAIN, True), PLAIN, [q, *table, zero, ..., *rest(0.125)], 2)
    check(got, [attend(q[b : b + 1], *pages.sequence(b), seen[b], 0.125) for b in (0, 1)], PLAIN)

    counts = [5, 1]
    at, q, position = indptr(counts), random(rng, "float16", 6, 4, 16), np.zeros(6, np.int32)
    program = built(prefill_paged, PLAIN, True)
    got = run(program, PLAIN, [q, at, *table, position, ..., 0, *rest(0.125)], 6)
    want = [
        attend(q[i:j], *pages.sequence(b), seen[b].repeat(j - i, 0), 0.125)
        for b, (i, j) in enumerate(pairwise(at))
    ]
    check(got, want, PLAIN)


@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_second_chunk_of_a_prompt(scale: float, built: Any) -> None:
    """New keys causally, cached keys as far as the window reaches, and both merged."""
    heads = MIXED
    rng, old, new = np.random.default_rng(2), [75, 0, 16], [21, 40, 1]
    n, at, pages = sum(new), indptr(new), cached(rng, old, heads)
    q, k, v = (random(rng, heads.dtype, n, h, heads.d) for h in (heads.num_q, *[heads.num_kv] * 2))
    position = np.concatenate([np.arange(o, o + m) for o, m in zip(old, new, strict=True)]).astype(
        np.int32
    )
    past, zero = np.array(old, np.int32), np.zeros(3, np.int32)
    window = heads.window if scale < 0 and heads.window else 10**6
    arguments = [q, at, k, v, at, position, past, ..., 1, *rest(scale)]
    ragged = run(built(prefill_ragged, heads), heads, arguments, n)
    table = [pages.data, pages.indptr, pages.values, pages.last, zero, position]
    paged = run(built(prefill_paged, heads), heads, [q, at, *table, ..., 0, *rest(scale)], n)
    want: list[list[tuple[Array, Array]]] = [[], [], []]
    for b, (i, j) in enumerate(pairwise(at)):
        distance = position[i:j, None] - np.arange(old[b] + j - i)[None]
        seen = (distance >= 0) & (distance < window)
        new_seen, old_seen = seen[:, old[b] :], seen[:, : old[b]]
        want[0].append(attend(q[i:j], k[i:j], v[i:j], new_seen, abs(scale), heads.cap))
        cache = pages.sequence(b)
        want[1].append(attend(q[i:j], *cache, old_seen, abs(scale), heads.cap))
        every = [np.concatenate(pair) for pair in zip(cache, (k[i:j], v[i:j]), strict=True)]
        want[2].append(attend(q[i:j], *every, seen, abs(scale), heads.cap))
    check(ragged, want[0], heads)
    check(paged, want[1], heads)
    both = ragged[0].astype(q.dtype), ragged[1].copy()
    built(merge_state, heads).run([*both, paged[0].astype(q.dtype), paged[1]])
    check((both[0].astype(np.float64), both[1]), want[2], heads)


def test_paged_prefill_causal(built: Any) -> None:
    rng, heads = np.random.default_rng(3), Heads(4, 2, 160, "float16")
    pages, at = cached(rng, [90, 40], heads), indptr([20, 30])
    q, zero = random(rng, "float16", 50, 4, 160), np.zeros(2, np.int32)
    table = [pages.data, pages.indptr, pages.values, pages.last, zero, np.zeros(50, np.int32)]
    got = run(built(prefill_paged, heads), heads, [q, at, *table, ..., 1, *rest(0.0625)], 50)
    want = [
        attend(q[:20], *pages.sequence(0), causal(20, 90), 0.0625),
        attend(q[20:], *pages.sequence(1), causal(30, 40), 0.0625),
    ]
    check(got, want, heads)


def test_token_trees(built: Any) -> None:
    rng, sizes, past = np.random.default_rng(4), [9, 1, 40], [50, 0, 13]
    trees = [tree(rng, size) for size in sizes]
    order, at, n = np.concatenate([t[0] for t in trees]), indptr(sizes), sum(sizes)
    q, k, v = (random(rng, "float16", n, h, 16) for h in (4, 2, 2))
    position, spans = np.zeros(n, np.int32), list(pairwise(at))
    arguments = [q, at, k, v, at, position, at, order, ..., *rest(0.125)]
    got = run(built(tree_ragged, PLAIN), PLAIN, arguments, n)
    want = [attend(q[i:j], k[i:j], v[i:j], trees[b][1], 0.125) for b, (i, j) in enumerate(spans)]
    check(got, want, PLAIN)

    pages = cached(rng, [s + p for s, p in zip(sizes, past, strict=True)], PLAIN)
    table = [pages.data, pages.indptr, pages.values, pages.last, np.zeros(3, np.int32), position]
    arguments = [q, at, *table, ..., *rest(0.125), at, order]
    got = run(built(tree_paged, PLAIN), PLAIN, arguments, n)
    want = []
    for b, (i, j) in enumerate(spans):
        seen = np.concatenate([np.ones((j - i, past[b]), bool), trees[b][1]], 1)
        want.append(attend(q[i:j], *pages.sequence(b), seen, 0.125))
    check(got, want, PLAIN)

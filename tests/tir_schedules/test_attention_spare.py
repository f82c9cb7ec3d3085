"""Kernels with a spare head: they attend as ever, and tell lse in its place.

The graph makes attention sinks of it; here float16, whose two parts of lse must add up to it.
"""

from __future__ import annotations

import numpy as np
from attention_reference import NO_KEY, ROUNDING, UNIT, Array, Pages, attend, causal, compiled
from attention_reference import random as normal
from test_attention import blank, indptr, tree

from tir_schedules.cpu.attention_decode import decode_paged
from tir_schedules.cpu.attention_prefill import prefill_paged, prefill_ragged
from tir_schedules.cpu.attention_tile import Heads
from tir_schedules.cpu.attention_tree import tree_paged, tree_ragged
from tir_schedules.cpu.merge_state import merge_state

KV, GROUP, D = 2, 3, 64  # two heads of a group attend
REAL = [h for h in range(KV * GROUP) if h % GROUP < GROUP - 1]
SHAPE = Heads(KV * GROUP, KV, D, D, "float16", spare=True)
SCALE = 0.125
TOLD = 2e-5


def queries(rng: np.random.Generator, n: int) -> Array:
    q = normal(rng, "float16", n, KV * GROUP, D)
    q[:, GROUP - 1 :: GROUP] = 0
    return q


def check(got: tuple[Array, Array], want: list[tuple[Array, Array]]) -> None:
    out, lse = (np.concatenate(parts) for parts in zip(*want, strict=True))
    assert abs(got[0][:, REAL].astype(np.float64) - out).max() < ROUNDING["float16"]
    spare = got[0][:, GROUP - 1 :: GROUP, : 2 * (GROUP - 1)].astype(np.float64)
    told = spare.reshape(len(lse), KV, GROUP - 1, 2).sum(-1).reshape(lse.shape)
    seen = lse > NO_KEY / 2
    assert abs(told - lse)[seen].max() < TOLD
    assert (told[~seen] < NO_KEY / 2).all()


def test_chunked_prefill() -> None:
    """New keys, cached keys, and both merged."""
    rng, cached, chunk = np.random.default_rng(6), [75, 16], [21, 90]
    pages, n, at = Pages(rng, cached, KV, D, "float16"), sum(chunk), indptr(chunk)
    q = queries(rng, n)
    k, v = (normal(rng, "float16", n, KV, D) for _ in range(2))
    zero, position = np.zeros(2, np.int32), np.zeros(n, np.int32)
    new, old = blank(n, KV * GROUP, D, q), blank(n, KV * GROUP, D, q)
    rest = (1.0, 1e4, SCALE)
    compiled(prefill_ragged, SHAPE, UNIT, ())(q, at, k, v, at, position, zero, *new, 1, 0, *rest)
    table = (pages.indptr, pages.values, pages.last, zero, position)
    compiled(prefill_paged, SHAPE, UNIT, ())(q, at, pages.data, *table, *old, 0, 0, *rest)
    spans, real = ((0, 21), (21, 111)), q[:, REAL]
    for got, with_new, with_old in ((new, True, False), (old, False, True), (new, True, True)):
        if with_new and with_old:
            compiled(merge_state, SHAPE, UNIT)(*new, *old)
        want = []
        for b, (i, j) in enumerate(spans):
            past = [(k[i:j], v[i:j])] * with_new
            past = [pages.sequence(b)] * with_old + past
            key, value = (np.concatenate(x) for x in zip(*past, strict=True))
            mask = causal(j - i, len(key)) if with_new else np.ones((j - i, len(key)), bool)
            want.append(attend(real[i:j], key, value, mask, SCALE))
        check(got, want)


def test_decode() -> None:
    rng, lengths = np.random.default_rng(7), [1, 700, 0, 256, 31]
    pages, q = Pages(rng, lengths, KV, D, "float16"), queries(rng, 5)
    zero, got = np.zeros(5, np.int32), blank(5, KV * GROUP, D, q)
    table = (pages.indptr, pages.values, pages.last, zero, zero)
    kernel = compiled(decode_paged, SHAPE, UNIT, ())
    kernel(q, pages.data, *table, *got, 0, 1.0, 1e4, SCALE)
    want = [
        attend(q[b : b + 1, REAL], *pages.sequence(b), np.ones((1, m), bool), SCALE)
        for b, m in enumerate(lengths)
    ]
    check(got, want)


def test_token_trees() -> None:
    rng, size = np.random.default_rng(12), 20
    (order, sees), at, zero = tree(rng, size), indptr([size]), np.zeros(1, np.int32)
    q, position = queries(rng, size), np.zeros(size, np.int32)
    k, v = (normal(rng, "float16", size, KV, D) for _ in range(2))
    got = blank(size, KV * GROUP, D, q)
    rest = (1.0, 1e4, SCALE)
    ragged = compiled(tree_ragged, SHAPE, UNIT, ())
    ragged(q, at, k, v, at, position, at, order, *got, 0, *rest)
    check(got, [attend(q[:, REAL], k, v, sees, SCALE)])

    pages, got = Pages(rng, [size + 30], KV, D, "float16"), blank(size, KV * GROUP, D, q)
    table = (pages.indptr, pages.values, pages.last, zero, position)
    paged = compiled(tree_paged, SHAPE, UNIT, ())
    paged(q, at, pages.data, *table, *got, 0, *rest, at, order)
    seen = np.concatenate([np.ones((size, 30), bool), sees], 1)
    check(got, [attend(q[:, REAL], *pages.sequence(0), seen, SCALE)])

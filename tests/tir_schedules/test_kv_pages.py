"""Kernels that move pages of the KV cache, and the kernels inside the runtime's own cache."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from attention_reference import (
    NUMPY,
    PAGE,
    ROUNDING,
    TARGET,
    UNIT,
    Array,
    attend,
    causal,
    compiled,
    random,
    rotate,
)
from tvm.runtime import ShapeTuple

from tir_schedules.cpu.attention import cpu_kv_cache_functions
from tir_schedules.cpu.attention_tile import Heads
from tir_schedules.cpu.kv_pages import compact_kv, copy_page, debug_get_kv, kv_append
from tir_schedules.cpu.merge_state import merge_state

Q, KV, D = 4, 2, 64


@pytest.mark.parametrize(("dtype", "n"), [("float32", 20), ("float16", 100), ("bfloat16", 1)])
def test_append_and_read_back(dtype: str, n: int) -> None:
    rng = np.random.default_rng(0)
    k, v = (random(rng, dtype, n, KV, D) for _ in range(2))
    pages = np.zeros((8, 2, KV, PAGE, D), k.dtype)
    position = rng.permutation(8 * PAGE)[:n].astype(np.int32)
    position[n // 2 : n // 2 + n // 10] = -1
    compiled(kv_append, KV, D, dtype)(pages, k, v, position)
    kept = position >= 0
    page, slot = position[kept] // PAGE, position[kept] % PAGE
    assert (pages[page, 0, :, slot] == k[kept]).all()
    assert (pages[page, 1, :, slot] == v[kept]).all()
    assert np.count_nonzero(pages.any((1, 2, 4))) == kept.sum()

    got = np.zeros((3, 2, n, KV, D), k.dtype)
    position[~kept] = 0
    read = compiled(debug_get_kv, 3, KV, D, dtype)
    keys, values = got[:, 0].copy(), got[:, 1].copy()
    read(pages, position, keys, values, 1)
    assert (keys[1][kept] == k[kept]).all()
    assert (values[1][kept] == v[kept]).all()
    assert not keys[[0, 2]].any()


def test_copy_page_copies_the_first_slots() -> None:
    pages = random(np.random.default_rng(1), "float16", 5, 2, KV, PAGE, D)
    want = pages.copy()
    want[4, :, :, :7] = want[2, :, :, :7]
    compiled(copy_page, KV, D, "float16")(pages, 2, 4, 7)
    assert (pages == want).all()


def test_compact_moves_in_order() -> None:
    """A later move may read what an earlier one wrote."""
    pages = random(np.random.default_rng(2), "float32", 4, 2, KV, PAGE, D)
    want, moves = pages.copy(), np.array([[20, 21, 3, 40], [3, 4, 18, 41]], np.int32)
    for src, dst in moves.T:
        want[dst // PAGE, :, :, dst % PAGE] = want[src // PAGE, :, :, src % PAGE]
    compiled(compact_kv, KV, D, "float32")(pages, np.array([0, 2, 4], np.int32), moves, 2)
    assert (pages == want).all()


@pytest.mark.parametrize("dtype", list(NUMPY))
@pytest.mark.parametrize("n", [3, 100])
def test_merge_state(n: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    v, w = (random(rng, dtype, n, Q, D) for _ in range(2))
    s, r = (rng.standard_normal((n, Q)).astype(np.float32) * 20 for _ in range(2))
    r[0] = -5e4
    a, b = 2.0 ** s.astype(np.float64), 2.0 ** r.astype(np.float64)
    x, y = v.astype(np.float64), w.astype(np.float64)
    want = (x * a[..., None] + y * b[..., None]) / (a + b)[..., None]
    first = v[0].copy()
    compiled(merge_state, Heads(Q, KV, D, D, dtype), UNIT)(v, s, w, r)
    assert abs(v.astype(np.float64) - want).max() < 4 * ROUNDING[dtype]
    assert abs(s - np.log2(a + b)).max() < 1e-5
    assert (v[0] == first).all()


class Cache:
    """The runtime's paged cache on our kernels, and every key and value it was given."""

    def __init__(self, dtype: str) -> None:
        functions = cpu_kv_cache_functions(
            num_layers=1, num_q=Q, num_kv=KV, qk_head_dim=D, v_head_dim=D, dtype=dtype,
            rope_theta=1e4, rope_scale=1, rope_scaling={}, rotary_dim=D, target=TARGET,
        )  # fmt: skip
        named = {n: f.with_attr("global_symbol", n) for n, f in functions.items()}
        library = tvm.compile(tvm.IRModule(named), target=TARGET)
        append, *attention, merge, rotary, copy, debug, compact = (library[n] for n in named)
        self.dtype = dtype
        self.past: dict[int, list[Array]] = {}
        self.cache = builtin("paged_attention_kv_cache_create")(
            ShapeTuple([8, 1024, 256, PAGE, 0]), ShapeTuple([0, 1]),
            Q, KV, D, D, ShapeTuple([0]), False, 1, 1, 1e4, None,
            tvm.runtime.empty((), dtype), append, None, *(["tirx", f] for f in attention), [],
            [merge], rotary, copy, debug, compact,
        )  # fmt: skip

    def add(self, sequence: int, parent: int | None = None) -> None:
        if parent is None:
            builtin("kv_state_add_sequence")(self.cache, sequence)
            self.past[sequence] = [np.zeros((0, h, D)) for h in (KV, KV)]
        else:
            builtin("kv_state_fork_sequence")(self.cache, parent, sequence, -1)
            self.past[sequence] = list(self.past[parent])

    def pop(self, sequence: int, count: int) -> None:
        builtin("kv_state_popn")(self.cache, sequence, count)
        self.past[sequence] = [x[: len(x) - count] for x in self.past[sequence]]

    def forward(self, rng: np.random.Generator, tokens: dict[int, int]) -> float:
        """Append random tokens to sequences; the largest error of their attention."""
        n, counts = sum(tokens.values()), ShapeTuple(list(tokens.values()))
        qkv = random(rng, self.dtype, n, Q + 2 * KV, D)
        data = tvm.runtime.empty(qkv.shape, self.dtype).copyfrom(qkv)
        out = tvm.runtime.empty((n, Q, D), self.dtype)
        builtin("kv_state_begin_forward")(self.cache, ShapeTuple(list(tokens)), counts)
        attention = builtin("attention_kv_cache_attention_with_fused_qkv")
        attention(self.cache, 0, D**-0.5, data, out)
        builtin("kv_state_end_forward")(self.cache)
        got, worst, at = out.numpy().view(qkv.dtype).astype(np.float64), 0.0, 0
        for sequence, count in tokens.items():
            rows = qkv[at : at + count]
            want = self._reference(sequence, rows)
            worst = max(worst, abs(got[at : at + count] - want).max())
            at += count
        return worst

    def _reference(self, sequence: int, rows: Array) -> Array:
        k, v = self.past[sequence]
        start, count = len(k), len(rows)
        positions = np.arange(start, start + count)
        q, new = rotate(rows[:, :Q], positions), rotate(rows[:, Q : Q + KV], positions)
        k = np.concatenate([k, new.astype(rows.dtype).astype(np.float64)])
        v = np.concatenate([v, rows[:, Q + KV :].astype(np.float64)])
        self.past[sequence] = [k, v]
        return attend(q.astype(rows.dtype), k, v, causal(count, len(k)), D**-0.5)[0]


def builtin(name: str) -> tvm.runtime.Function:
    return tvm.get_global_func(f"vm.builtin.{name}")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_inside_the_runtime_cache(dtype: str) -> None:
    """Prefill, chunked prefill, batched decode, a fork (shared pages), and tokens taken back."""
    rng, cache, limit = np.random.default_rng(4), Cache(dtype), 2 * ROUNDING[dtype]
    for sequence in (0, 1, 2):
        cache.add(sequence)
    assert cache.forward(rng, {0: 37}) < limit
    assert cache.forward(rng, {0: 90, 1: 5}) < limit
    assert cache.forward(rng, {2: 1}) < limit
    for _ in range(3):
        assert cache.forward(rng, {0: 1, 1: 1, 2: 1}) < limit
    cache.add(3, parent=0)
    assert cache.forward(rng, {3: 1}) < limit
    assert cache.forward(rng, {0: 1, 3: 1, 1: 1}) < limit
    assert cache.forward(rng, {3: 20, 0: 2}) < limit
    cache.pop(0, 9)
    assert cache.forward(rng, {0: 1, 2: 7}) < limit
    assert cache.forward(rng, {0: 1}) < limit

"""The rotary split against float64 numpy, and its frequency scalings against TVM's own kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_reference import NUMPY, ROUNDING, UNIT, Array, compiled, random, rotate
from tvm.relax.frontend.nn.llm.position_embedding import llama_rope_with_position_map

from tir_schedules.cpu.rope import split_rotary

Q, KV = 6, 2
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32,
    "beta_slow": 1,
    "inv_theta_log_scale": 0.0543,
}


def outputs(n: int, d: int, dtype: str) -> list[Array]:
    return [np.zeros((n, h, d), NUMPY[dtype]) for h in (Q, KV, KV)]


@pytest.mark.parametrize("dtype", list(NUMPY))
@pytest.mark.parametrize(("n", "start"), [(1, 5), (40, 0), (3, 3000)])
def test_against_numpy(n: int, start: int, dtype: str) -> None:
    rng, d = np.random.default_rng(0), 64
    qkv, position = (
        random(rng, dtype, n, Q + 2 * KV, d),
        np.arange(start, start + n, dtype=np.int32),
    )
    q, k, v = outputs(n, d, dtype)
    kernel = compiled(split_rotary, Q, KV, d, dtype, UNIT, 1e4, 1.0, ())
    kernel(qkv, position, q, k, v, 1)
    # float32 angles: position times the rounding of the rate
    limit = 4 * ROUNDING[dtype] + (start + n) * 1e-6
    assert abs(q.astype(np.float64) - rotate(qkv[:, :Q], position)).max() < limit
    assert abs(k.astype(np.float64) - rotate(qkv[:, Q : Q + KV], position)).max() < limit
    assert (v == qkv[:, Q + KV :]).all()
    kernel(qkv, position, q, k, v, 0)
    assert (np.concatenate([q, k, v], 1) == qkv).all()


@pytest.mark.parametrize(
    ("scaling", "d", "rotary"),
    [(LLAMA3, 64, 64), (YARN, 64, 64), ({"rope_type": "gptj"}, 64, 64), ({}, 80, 32)],
)
def test_against_tvm(scaling: dict[str, Any], d: int, rotary: int) -> None:
    rng, n = np.random.default_rng(1), 20
    qkv = random(rng, "float32", n, Q + 2 * KV, d)
    position = rng.integers(0, 100, n).astype(np.int32)
    got, want = outputs(n, d, "float32"), outputs(n, d, "float32")
    frozen = tuple(scaling.items())
    compiled(split_rotary, Q, KV, d, "float32", UNIT, 5e5, 1.0, frozen, rotary)(
        qkv, position, *got, 1
    )
    compiled(llama_rope_with_position_map, 5e5, 1.0, d, Q, KV, "float32", frozen, rotary)(
        qkv, position, *want, 1
    )
    assert max(abs(a - b).max() for a, b in zip(got, want, strict=True)) < 5e-5

"""Every architecture with float32, group-quantized and AutoAWQ weights against Hugging Face.

The reference holds the same (dequantized) weights in float32, so q0f32 must agree to rounding and
the float16 schemes to float16's. Prompts are four times as long as any window.
"""

from __future__ import annotations

import numpy as np
import pytest
from built import Built
from conftest import Build, Checkpoints
from tiny import MODELS, WINDOW

TOKENS = 4 * WINDOW
SCHEMES = ("q0f32", "q4f16_1", "q4f16_autoawq")


def close(got: np.ndarray, expected: np.ndarray, scheme: str) -> None:
    """Float32: 1e-3 at most. Float16: one part in a hundred of the logits' spread on average."""
    error = np.abs(got - expected)
    if scheme == "q0f32":
        assert error.max() < 1e-3
    else:
        assert np.sqrt((error**2).mean()) < 0.01 * expected.std()


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, scheme: str, built: Build, checkpoints: Checkpoints
) -> Built:
    return built(checkpoints(request.param), scheme)


def test_logits(model: Built, scheme: str) -> None:
    ids = model.tokens(TOKENS)
    expected = model.expected(ids)
    close(model.lib.all_logits(model.lib.cache(), ids), expected, scheme)


def test_chunks_steps_and_batch(model: Built, scheme: str) -> None:
    lib, ids = model.lib, model.tokens(TOKENS)
    expected = model.expected(ids)

    kv = lib.cache()
    chunks = [lib.all_logits(kv, ids[a : a + 7]) for a in range(0, 21, 7)]
    steps = [lib.decode(kv, token) for token in ids[21:]]
    close(np.concatenate([*chunks, *steps]), expected, scheme)

    kv = lib.cache(2)
    cuts = [15, 31]
    prompts = lib.batch_prefill(kv, [ids[:n] for n in cuts])
    close(prompts, expected[[n - 1 for n in cuts]], scheme)
    for step in range(3):
        batch = lib.batch_decode(kv, [ids[n + step] for n in cuts])
        close(batch, expected[[n + step for n in cuts]], scheme)

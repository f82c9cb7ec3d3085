"""Classic decoders beyond MLC LLM's first, in float32 against Hugging Face, prefill and decode.

Prompts are four times as long as any window and three times yarn's trained length; one comes
in pieces.
"""

from __future__ import annotations

import numpy as np
import pytest
from built import Build, Checkpoints
from tiny import CLASSIC, MLA, WINDOW

TOKENS = 4 * WINDOW
REST = ("prefill", "batch_prefill", "batch_decode")  # the same graph, other kernels
# Beyond the trained length dynamic rope is what the prompt's length makes it: no pieces.
LONGER = {"internlm3": {"context_window_size": 512, "prefill_chunk_size": 512}}


@pytest.mark.parametrize("name", [*CLASSIC, *MLA])
def test_logits(name: str, built: Build, checkpoints: Checkpoints) -> None:
    model = built(checkpoints(name), "q0f32", REST, **LONGER.get(name, {}))
    lib, ids = model.lib, model.tokens(TOKENS)
    expected = model.expected(ids)
    assert expected.std() > 0.1
    most = 1e-4 * max(1.0, expected.std())
    np.testing.assert_allclose(lib.all_logits(lib.cache(), ids), expected, atol=most)
    if name in LONGER:
        return
    kv = lib.cache()
    begin = lib.all_logits(kv, ids[:40])
    steps = [lib.decode(kv, token) for token in ids[40:43]]
    got = np.concatenate([begin, *steps, lib.all_logits(kv, ids[43:])])
    np.testing.assert_allclose(got, expected, atol=most)


@pytest.mark.parametrize("name", ["cohere2", "starcoder2"])
def test_quantized(name: str, built: Build, checkpoints: Checkpoints) -> None:
    """The parts that the nine first architectures do not have, with float16 activations."""
    model = built(checkpoints(name), "q4f16_1", REST)
    lib, ids = model.lib, model.tokens(TOKENS)
    expected, kv = model.expected(ids), lib.cache()
    got = np.concatenate([lib.all_logits(kv, ids[:40]), *(lib.decode(kv, t) for t in ids[40:])])
    assert np.sqrt(((got - expected) ** 2).mean()) < 0.01 * expected.std()

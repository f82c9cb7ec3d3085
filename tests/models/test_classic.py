"""Decoders that MLC LLM does not know, in float32 against Hugging Face.

Prompts are four times as long as any window and three times yarn's trained length; one comes
in pieces.
"""

from __future__ import annotations

import numpy as np
import pytest
from built import Build, Checkpoints
from tiny import CLASSIC, MLA, WINDOW

TOKENS = 4 * WINDOW
REST = ("prefill", "decode", "batch_prefill", "batch_decode")  # the same graph, other kernels
# Beyond the trained length dynamic rope is what the prompt's length makes it: no pieces.
LONGER = {"internlm3": {"context_window_size": 512, "prefill_chunk_size": 512}}


@pytest.mark.parametrize("name", [*CLASSIC, *MLA])
def test_logits(name: str, built: Build, checkpoints: Checkpoints) -> None:
    model = built(checkpoints(name), "q0f32", REST, **LONGER.get(name, {}))
    lib, ids = model.lib, model.tokens(TOKENS)
    expected = model.expected(ids)
    assert expected.std() > 0.1
    np.testing.assert_allclose(lib.all_logits(lib.cache(), ids), expected, atol=1e-4)
    if name in LONGER:
        return
    kv = lib.cache()
    parts = [lib.all_logits(kv, ids[a:b]) for a, b in ((0, 40), (40, 41), (41, 42), (42, TOKENS))]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-4)

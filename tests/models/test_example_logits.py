"""The compiled example model against Hugging Face transformers in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from built import Build

PROMPTS = (
    "import os\nimport sys\n\n\ndef main(argv=None):\n    parser = argparse.ArgumentParser(",
    'class Node:\n    """A node of a tree."""\n\n    def __init__(self, value, left=None',
    "<|im_start|>user\nWhat does os.path.join do?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "try:\n    with open(path) as file:\n        data = json.load(file)\nexcept (OSError, ",
    "for key, value in sorted(table.items(), key=lambda item: item[1], reverse=True):\n",
    "# Copyright 2001-2022 by Vinay Sajip. All Rights Reserved.\n#\n# Permission to use, copy",
    "The quick brown fox jumps over the lazy dog while the rain falls on the old stone wall.",
)
POSITIONS = 64


@pytest.fixture(scope="module")
def prompts(examples: Path) -> list[list[int]]:
    tokenizer = tokenizers.Tokenizer.from_file(str(examples / "stdlib-llama-7m" / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in PROMPTS]
    return [(i * (POSITIONS // len(i) + 1))[:POSITIONS] for i in ids]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_float32_logits(built: Build, examples: Path, prompts: list[list[int]]) -> None:
    model = built(examples / "stdlib-llama-7m", "q0f32")
    worst = max(
        np.abs(model.lib.all_logits(model.lib.cache(), ids) - model.expected(ids)).max()
        for ids in prompts
    )
    assert worst < 1e-4


def test_float32_greedy_text(built: Build, examples: Path, prompts: list[list[int]]) -> None:
    model = built(examples / "stdlib-llama-7m", "q0f32")
    for prompt in prompts[:3]:
        kv = model.lib.cache()
        tokens = [int(model.lib.prefill(kv, prompt).argmax())]
        for _ in range(63):
            tokens.append(int(model.lib.decode(kv, tokens[-1]).argmax()))
        expected = model.expected([*prompt, *tokens])[len(prompt) - 1 : -1].argmax(axis=-1)
        assert tokens == expected.tolist()


def test_awq_distribution(built: Build, examples: Path, prompts: list[list[int]]) -> None:
    """float16 activations over the AWQ checkpoint's words: rounding only."""
    model = built(examples / "stdlib-llama-7m-awq", "q4f16_autoawq")
    kl, same = [], []
    for ids in prompts:
        ours = log_softmax(model.lib.all_logits(model.lib.cache(), ids))
        theirs = log_softmax(model.expected(ids))
        kl.append((np.exp(theirs) * (theirs - ours)).sum(axis=-1))
        same.append(ours.argmax(axis=-1) == theirs.argmax(axis=-1))
    assert np.mean(kl) < 1e-4
    assert np.mean(same) > 0.99


@pytest.mark.parametrize(
    ("folder", "scheme", "tolerance"),
    [("stdlib-llama-7m", "q0f32", 1e-4), ("stdlib-llama-7m-awq", "q4f16_autoawq", 5e-2)],
)
def test_every_way_to_the_same_logits(
    built: Build,
    examples: Path,
    prompts: list[list[int]],
    folder: str,
    scheme: str,
    tolerance: float,
) -> None:
    """Chunks of a prompt = the prompt at once = token by token = in a batch with others."""
    model = built(examples / folder, scheme)
    lib, ids = model.lib, prompts[0]
    whole = lib.all_logits(lib.cache(), ids)

    kv = lib.cache()
    chunks = [lib.all_logits(kv, ids[a : a + 17]) for a in range(0, len(ids), 17)]
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=tolerance)

    kv = lib.cache()
    first = lib.prefill(kv, ids[:40])
    steps = [lib.decode(kv, token) for token in ids[40:]]
    np.testing.assert_allclose(np.concatenate([first, *steps]), whole[39:], atol=tolerance)

    kv = lib.cache(3)
    cuts = [10, 21, 40]
    batch = lib.batch_prefill(kv, [ids[:n] for n in cuts])
    np.testing.assert_allclose(batch, whole[[n - 1 for n in cuts]], atol=tolerance)
    batch = lib.batch_decode(kv, [ids[n] for n in cuts])
    np.testing.assert_allclose(batch, whole[cuts], atol=tolerance)

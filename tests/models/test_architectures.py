"""Every architecture with float32, group-quantized and AutoAWQ weights against Hugging Face.

The reference holds the same (dequantized) weights in float32, so q0f32 must agree to rounding and
the float16 schemes to float16's. Prompts are four times as long as any window.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from built import Build, Built, Checkpoints
from flush import denormals_flushed, needs_x86
from tiny import MODELS, WINDOW

TOKENS = 4 * WINDOW
# Every model in one of two schemes in turn, some in both.
SCHEMES = ("q4f16_1", "q4f16_autoawq")
QUANTIZED = [
    (name, scheme)
    for number, name in enumerate(MODELS)
    for scheme in SCHEMES
    if name in ("llama", "gemma2", "qwen3_moe") or SCHEMES[number % 2] == scheme
]


def close(got: np.ndarray, expected: np.ndarray, scheme: str) -> None:
    """Float32: 1e-3 at most. Float16: one part in a hundred of the logits' spread."""
    error = np.abs(got - expected)
    if scheme == "q0f32":
        assert error.max() < 1e-3
    else:
        assert np.sqrt((error**2).mean()) < 0.01 * expected.std()


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(("name", "scheme"), QUANTIZED, indirect=["name"])
def test_quantized(name: str, scheme: str, built: Build, checkpoints: Checkpoints) -> None:
    """The prompt at once, and its end token by token."""
    model = built(checkpoints(name), scheme, ("prefill", "batch_prefill", "batch_decode"))
    lib, ids = model.lib, model.tokens(TOKENS)
    expected = model.expected(ids)
    close(lib.all_logits(lib.cache(), ids), expected, scheme)
    kv = lib.cache()
    begin = lib.all_logits(kv, ids[:40])
    steps = [lib.decode(kv, token) for token in ids[40:]]
    close(np.concatenate([begin, *steps]), expected, scheme)


@pytest.mark.parametrize("name", ["mixtral"], indirect=True)
def test_float8_rows(name: str, built: Build, checkpoints: Checkpoints) -> None:
    """Attention and experts; weights are not rounded again, so only activations are."""
    without = ("prefill", "batch_prefill", "batch_decode")
    model = built(checkpoints(name), "fp8_e4m3fn_f16_row_scale", without)
    ids = model.tokens(TOKENS)
    got = model.lib.all_logits(model.lib.cache(), ids)
    close(got, model.expected(ids), "fp8_e4m3fn_f16_row_scale")


@pytest.fixture(scope="module")
def model(name: str, built: Build, checkpoints: Checkpoints) -> Built:
    return built(checkpoints(name), "q0f32")


def test_prompt_at_once(model: Built) -> None:
    ids = model.tokens(TOKENS)
    close(model.lib.all_logits(model.lib.cache(), ids), model.expected(ids), "q0f32")


@pytest.mark.parametrize("chunk", [7, 10, 16, 30])
def test_prompt_in_chunks_then_token_by_token(model: Built, chunk: int) -> None:
    lib, ids = model.lib, model.tokens(TOKENS)
    kv = lib.cache()
    cut = TOKENS - 10
    chunks = [lib.all_logits(kv, ids[a : min(a + chunk, cut)]) for a in range(0, cut, chunk)]
    steps = [lib.decode(kv, token) for token in ids[cut:]]
    close(np.concatenate([*chunks, *steps]), model.expected(ids), "q0f32")


def test_batch_is_its_sequences(model: Built) -> None:
    lib, ids = model.lib, model.tokens(TOKENS)
    expected = model.expected(ids)
    kv, cuts = lib.cache(2), [15, 31]
    prompts = lib.batch_prefill(kv, [ids[:n] for n in cuts])
    close(prompts, expected[[n - 1 for n in cuts]], "q0f32")
    for step in range(3):
        batch = lib.batch_decode(kv, [ids[n + step] for n in cuts])
        close(batch, expected[[n + step for n in cuts]], "q0f32")


@needs_x86
def test_flushed_denormals_change_no_bit(model: Built) -> None:
    """In a process that has loaded a fast-math library, as MLC LLM's engine is one."""
    lib, ids = model.lib, model.tokens(TOKENS)

    def run() -> list[np.ndarray]:
        one, two = lib.cache(), lib.cache(2)
        outputs = [lib.all_logits(one, ids[:30]), *(lib.decode(one, t) for t in ids[30:33])]
        outputs += [lib.batch_prefill(two, [ids[:9], ids[:20]]), lib.batch_decode(two, ids[:2])]
        return [*outputs, lib.prefill(lib.cache(), ids)]

    usual = run()
    with denormals_flushed():
        flushed = run()
    assert all(np.array_equal(a, b) for a, b in zip(usual, flushed, strict=True))


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "phi3"], indirect=True)
def test_windows_and_caps_are_felt(model: Built) -> None:
    """Without its window or caps the reference is another model: the tests above would see it."""
    ids = model.tokens(TOKENS)
    expected = model.expected(ids)
    wide = copy.deepcopy(model.reference)
    for module in wide.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 10 * TOKENS
    config = wide.config
    for key, value in (("sliding_window", 10 * TOKENS), ("attn_logit_softcapping", None)):
        if getattr(config, key, None):
            setattr(config, key, value)
    with torch.no_grad():
        other = wide(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(other - expected)[WINDOW:].max() > 0.1

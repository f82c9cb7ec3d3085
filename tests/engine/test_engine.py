"""The engine on the compiled example model, against Hugging Face transformers in float32."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mlc_bridge.engine import EngineConfig, MLCEngine
from mlc_bridge.errors import ContextOverflow, EngineError

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[2] / "examples" / "models" / "stdlib-llama-7m"

# Along these answers the best two logits are at least 0.003 apart, so rounding decides nothing.
PROMPTS = [
    "def read_file(path):\n",
    "import os\n\nclass ",
    "while True:",
    "@property",
    "    for i in range(",
    "from typing import",
    "try:\n    import ",
    "x = [",
]
CHAT = [{"role": "user", "content": "What does os.path.join do?"}]
STEPS = 64


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def forced(engine: MLCEngine, prompt: str | list[int], **options: Any) -> Any:
    """Exactly STEPS greedy tokens, whatever they are."""
    settings = {
        "temperature": 0.0, "max_tokens": STEPS, "debug_config": {"ignore_eos": True}, **options,
    }  # fmt: skip
    return engine.completions.create(prompt=prompt, **settings)


def hf_greedy(reference: Any, ids: list[int], steps: int = STEPS) -> tuple[list[int], list[float]]:
    """Tokens and their log probabilities, recomputed from scratch by one final forward pass."""
    out = reference.generate(
        torch.tensor([ids]), do_sample=False, min_new_tokens=steps, max_new_tokens=steps,
        attention_mask=torch.ones(1, len(ids), dtype=torch.long), eos_token_id=None,
    )[0].tolist()  # fmt: skip
    with torch.no_grad():
        logits = reference(torch.tensor([out])).logits[0].double().log_softmax(-1)
    new = out[len(ids) :]
    return new, [float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(new)]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_equal_transformers(engine: MLCEngine, reference: Any, prompt: str) -> None:
    ids = engine.tokenizer.encode(prompt)
    tokens, logprobs = hf_greedy(reference, ids)
    response = forced(engine, prompt, logprobs=1)
    choice = response.choices[0]
    assert choice.text == engine.tokenizer.decode(tokens)
    assert choice.finish_reason == "length"
    np.testing.assert_allclose(choice.logprobs.token_logprobs, logprobs, atol=1e-3)
    usage = response.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), STEPS)
    assert usage.total_tokens == len(ids) + STEPS


@pytest.mark.parametrize("as_ids", [False, True])
def test_log_probabilities_of_a_prompt_equal_transformers(
    engine: MLCEngine, reference: Any, as_ids: bool
) -> None:
    texts = [PROMPTS[0] * 20, *PROMPTS[1:4]]
    ids = [engine.tokenizer.encode(text) for text in texts]
    found = engine.completions.create(
        prompt=ids if as_ids else texts, echo=True, logprobs=2, max_tokens=0
    )
    assert found.usage.prompt_tokens == sum(map(len, ids))
    for choice, tokens, text in zip(found.choices, ids, texts, strict=True):
        with torch.no_grad():
            wanted = reference(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        first, *rest = choice.logprobs.token_logprobs
        assert (first, choice.text, choice.logprobs.tokens[0]) == (
            None, text, engine.tokenizer.decode(tokens[:1]),
        )  # fmt: skip
        exact = [float(row[t]) for row, t in zip(wanted, tokens[1:], strict=False)]
        np.testing.assert_allclose(rest, exact, atol=1e-3)
        tops = [max(top.values()) for top in choice.logprobs.top_logprobs[1:]]
        np.testing.assert_allclose(tops, wanted[:-1].max(-1).values, atol=1e-3)


def test_chat_follows_the_template_and_ends_its_turn(engine: MLCEngine, reference: Any) -> None:
    text = "<|im_start|>user\nWhat does os.path.join do?<|im_end|>\n<|im_start|>assistant\n"
    tokens, _ = hf_greedy(reference, engine.tokenizer.encode(text))
    end = tokens.index(2)
    response = engine.chat.completions.create(messages=CHAT, temperature=0.0)
    assert response.choices[0].message.content == engine.tokenizer.decode(tokens[:end])
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.completion_tokens == end + 1


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunked_prefill_gives_the_same_answer(
    artifact: Path, engine: MLCEngine, chunk: int
) -> None:
    prompt = "def read_file(path):\n" * 5
    whole = forced(engine, prompt, logprobs=0).choices[0]
    with MLCEngine(artifact, engine_config=EngineConfig(prefill_chunk_size=chunk)) as chunked:
        parts = forced(chunked, prompt, logprobs=0).choices[0]
    assert parts.text == whole.text
    np.testing.assert_allclose(
        parts.logprobs.token_logprobs, whole.logprobs.token_logprobs, atol=1e-4
    )


def collect(chunks: Iterator[Any]) -> tuple[str, str, Any]:
    text, reason, usage = "", "", None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5, "top_p": 0.9},
        {"temperature": 1.5, "seed": 6, "max_tokens": 40, "stop": ["e", "("]},
        {"temperature": 1.0, "seed": 7, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    ],
)
def test_streaming_says_what_not_streaming_says(engine: MLCEngine, options: dict[str, Any]) -> None:
    whole = engine.chat.completions.create(messages=CHAT, **options)
    text, reason, usage = collect(
        engine.chat.completions.create(
            messages=CHAT, stream=True, stream_options={"include_usage": True}, **options
        )
    )
    assert text == whole.choices[0].message.content
    assert reason == whole.choices[0].finish_reason
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_seed_repeats_and_another_differs(engine: MLCEngine) -> None:
    def say(seed: int | None) -> str:
        options: dict[str, Any] = {"temperature": 1.5, "seed": seed}
        return forced(engine, "import ", **options).choices[0].text

    assert say(1) == say(1)
    assert len({say(1), say(2), say(None), say(None)}) == 4


def test_stop_string_across_tokens_is_cut_and_not_shown(engine: MLCEngine) -> None:
    whole = forced(engine, PROMPTS[0]).choices[0].text
    ids = engine.tokenizer.encode(whole)
    edge = len(engine.tokenizer.decode(ids[:10]))
    stop = whole[edge - 2 : edge + 2]
    choice = forced(engine, PROMPTS[0], stop=stop, debug_config=None).choices[0]
    assert choice.text == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


def test_several_answers_share_the_prompt(engine: MLCEngine) -> None:
    many = forced(engine, PROMPTS[0], n=3, temperature=1.5, seed=10).choices
    alone = [
        forced(engine, PROMPTS[0], temperature=1.5, seed=10 + i).choices[0].text for i in range(3)
    ]
    assert [c.index for c in many] == [0, 1, 2]
    assert [c.text for c in many] == alone
    assert len(set(alone)) == 3


def test_more_answers_than_slots(engine: MLCEngine) -> None:
    choices = forced(engine, PROMPTS[1], n=7).choices
    assert len(choices) == 7
    assert len({c.text for c in choices}) == 1


def test_requests_of_many_threads_run_together_and_do_not_mix(engine: MLCEngine) -> None:
    alone = {p: forced(engine, p).choices[0].text for p in PROMPTS}
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda p: (p, forced(engine, p).choices[0].text), PROMPTS * 3))
    assert together == [(p, alone[p]) for p in PROMPTS * 3]


def test_running_out_of_pages_only_delays(artifact: Path, engine: MLCEngine) -> None:
    """Four sequences of about 90 tokens in a cache of 192: some leave and come back."""
    limits = EngineConfig(max_total_sequence_length=192, prefill_chunk_size=32)
    alone = [forced(engine, p * 3).choices[0].text for p in PROMPTS]
    with MLCEngine(artifact, engine_config=limits) as small, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: forced(small, p * 3).choices[0].text, PROMPTS))
    assert found == alone


def test_context_window(artifact: Path) -> None:
    config = EngineConfig(context_window_size=32)
    with MLCEngine(artifact, engine_config=config) as engine:
        with pytest.raises(ContextOverflow, match="found 32 tokens"):
            engine.completions.create(prompt=[5] * 32)
        choice = forced(engine, [5] * 31).choices[0]
        assert (choice.finish_reason, len(engine.tokenizer.encode(choice.text))) == ("length", 1)
        response = forced(engine, [5] * 20)
        assert response.choices[0].finish_reason == "length"
        assert response.usage.total_tokens == 32


def test_dropped_stream_frees_its_place(artifact: Path) -> None:
    with MLCEngine(artifact, mode="interactive") as engine:
        stream = engine.completions.create(
            prompt="x", max_tokens=2000, stream=True, debug_config={"ignore_eos": True}
        )
        next(stream)
        stream.close()
        assert forced(engine, PROMPTS[0], max_tokens=4).usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frobnicate": 1}, "frobnicate: unknown argument"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop.0: String should have at least 1"),
        ({"top_logprobs": 2}, "needs logprobs=True"),
        ({"stream_options": {"include_usage": True}}, "needs stream=True"),
        ({"logit_bias": {5000: 1.0}}, "logit_bias: an id that the model does not have"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "role"),
    ],
)
def test_bad_arguments_are_named(engine: MLCEngine, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        engine.chat.completions.create(**{"messages": CHAT, **options})


def test_logit_bias_and_alternatives(engine: MLCEngine) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 3, "logprobs": True}
    plain = engine.chat.completions.create(messages=CHAT, top_logprobs=20, **options)
    entry = plain.choices[0].logprobs.content[0]
    assert len(entry.top_logprobs) == 20
    assert entry.top_logprobs[0].token == entry.token
    assert bytes(entry.bytes).decode() == entry.token
    values = [t.logprob for t in entry.top_logprobs]
    assert values == sorted(values, reverse=True)
    token = engine.tokenizer.encode("xyz")[0]
    biased = engine.chat.completions.create(messages=CHAT, logit_bias={token: 100.0}, **options)
    assert biased.choices[0].message.content == engine.tokenizer.decode([token] * 3)


def test_terminate_fails_what_is_running_and_what_comes_later(artifact: Path) -> None:
    engine = MLCEngine(artifact)
    stream = engine.completions.create(
        prompt="x", max_tokens=2000, stream=True, debug_config={"ignore_eos": True}
    )
    next(stream)
    engine.terminate()
    engine.terminate()
    with pytest.raises(EngineError, match="terminated"):
        list(stream)
    with pytest.raises(EngineError, match="ended"):
        forced(engine, "x")
    assert not any(t.name == "mlc-bridge-engine" and not t.daemon for t in threading.enumerate())


def test_usage_tells_what_the_prefix_cache_had(engine: MLCEngine) -> None:
    ids = list(range(1000, 1060))

    def cached(prompt: list[Any], **options: Any) -> int:
        found = engine.completions.create(prompt=prompt, max_tokens=2, temperature=0, **options)
        if options.get("stream"):
            *_, found = found
        return int(found.usage.prompt_tokens_details.cached_tokens)

    assert cached(ids) == 0
    assert cached(ids) == len(ids) - 1
    streamed: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    assert cached(ids, n=2, **streamed) == len(ids) - 1  # once for all answers
    assert cached([[*ids, 7], [9] * 20]) == len(ids)
    assert cached(ids, seed=1) == 0

"""Decoders with recurrent layers in float32 against Hugging Face, and in the engine.

Whatever way the tokens come - at once, in pieces, one by one, beside other sequences, after a fork,
again after an eviction - the state must be that of the whole sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import Build, Built, Checkpoints
from tiny import HYBRIDS, SAME_PARTS

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.engine.library import Library
from mlc_bridge.engine.runtime import Limits, Runtime
from mlc_bridge.engine.scheduler import Scheduler, Sequence
from mlc_bridge.errors import EngineError
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages.build_plan import _cache_bytes
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight
from mlc_bridge.stages.recognise import recognise

TOKENS = 48
LENGTH = 12  # of an answer


SERVED = ("lfm2",)  # also in the engine, where a state is a state


@pytest.fixture(scope="module", params=HYBRIDS)
def model(request: pytest.FixtureRequest, built: Build, checkpoints: Checkpoints) -> Built:
    without = () if request.param in SERVED else ("prefill", "decode", "batch_verify")
    return built(checkpoints(request.param), "q0f32", without)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("model", SERVED, indirect=True)
def test_prompt_at_once_and_in_pieces(model: Built) -> None:
    lib, ids = model.lib, model.tokens(TOKENS)
    expected = model.expected(ids)
    assert expected.std() > 0.1
    close(lib.all_logits(lib.cache(), ids), expected)
    kv = lib.cache()
    pieces = [lib.all_logits(kv, ids[a:b]) for a, b in ((0, 1), (1, 3), (3, 30), (30, 31))]
    steps = [lib.decode(kv, token) for token in ids[31:40]]
    last = lib.prefill(kv, ids[40:])
    close(np.concatenate([*pieces, *steps, last]), expected[[*range(40), TOKENS - 1]])


def test_batch_is_its_sequences(model: Built) -> None:
    lib, ids = model.lib, model.tokens(TOKENS)
    expected = model.expected(ids)
    kv, ends = lib.cache(3), [1, 30, 17]
    close(lib.batch_prefill(kv, [ids[:n] for n in ends]), expected[[n - 1 for n in ends]])
    for step in range(3):
        got = lib.batch_decode(kv, [ids[n + step] for n in ends])
        close(got, expected[[n + step for n in ends]])
    begun = [n + 3 for n in ends]
    got = lib.batch_prefill(kv, [ids[n : n + k] for n, k in zip(begun, (5, 1, 9), strict=True)])
    close(got, expected[[n + k - 1 for n, k in zip(begun, (5, 1, 9), strict=True)]])


@pytest.mark.parametrize("name", SAME_PARTS)
@pytest.mark.parametrize("scheme", ["q0f32", "q4f16_1"])
def test_every_tensor_has_its_place(
    name: str, scheme: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """The small ones stay float: those that decide in float32, those that multiply in the model's
    dtype."""
    convert_weight(ConvertJob(checkpoints(name), tmp_path / "out", quantization=scheme))
    stored = {name: record.dtype for name, record in read_index(tmp_path / "out").records.items()}
    kept = [n for n in stored if n.endswith(("A_log", "dt_bias", "expert_bias", "correction_bias"))]
    assert {stored[name] for name in kept} <= {"float32"}
    model = SCHEMES[scheme].model_dtype
    assert {d for n, d in stored.items() if "conv" in n and "proj" not in n} <= {model}


class Greedy:
    """An answer of ``LENGTH`` tokens."""

    cancelled = False

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def next_token(self, logits: np.ndarray) -> int | None:
        self.tokens.append(int(logits.argmax()))
        return self.tokens[-1] if len(self.tokens) < LENGTH else None

    def fail(self, error: BaseException) -> None:
        raise error


def engine(model: Built, **limits: Any) -> Scheduler:
    lib = model.lib
    library = Library(Path("lib.so"), lib.vm, {}, lib.device)
    fits = {"context_window": 64, "prefill_chunk": 24, "max_batch": 4, "total": 64} | limits
    told = Limits(**fits, only_grows=True)
    return Scheduler(Runtime(library, lib.params, told, model.vocab, Path()))


def run(scheduler: Scheduler, *prompts: list[int], siblings: int = 0) -> list[list[int]]:
    answers = [[Greedy() for _ in range(1 + siblings)] for _ in prompts]
    for prompt, (first, *more) in zip(prompts, answers, strict=True):
        scheduler.submit(Sequence(prompt, first, more))
    while scheduler.busy:
        scheduler.step()
    return [answer.tokens for group in answers for answer in group]


def is_greedy(model: Built, prompt: list[int], answer: list[int]) -> None:
    logits = model.expected([*prompt, *answer])[len(prompt) - 1 : -1]
    assert len(answer) == LENGTH
    chosen = logits[range(LENGTH), answer]
    np.testing.assert_allclose(chosen, logits.max(-1), atol=1e-4)


@pytest.mark.parametrize("model", SERVED, indirect=True)
def test_engine_serves_many_in_a_small_cache(model: Built) -> None:
    """Chunked prompts beside decoding ones, forks, and eviction for want of pages."""
    prompts = [model.tokens(n, seed=n) for n in (13, 14, 15, 50)]
    scheduler = engine(model)
    for number, answer in enumerate(run(scheduler, *prompts, siblings=1)):
        is_greedy(model, prompts[number // 2], answer)
    assert scheduler.counts.preempted > 0


@pytest.mark.parametrize("model", SERVED, indirect=True)
def test_only_a_whole_past_is_taken_over(model: Built) -> None:
    scheduler = engine(model)
    prompt = model.tokens(20)
    (answer,) = run(scheduler, prompt)
    longer = [*prompt, *answer, *model.tokens(5, seed=1)]
    (next_turn,) = run(scheduler, longer)
    assert scheduler.counts.reused == 20 + LENGTH - 1
    is_greedy(model, longer, next_turn)
    other = [*prompt, *model.tokens(9, seed=2)]  # begins alike: nothing to be taken back to
    (apart,) = run(scheduler, other)
    assert scheduler.counts.reused == 20 + LENGTH - 1
    is_greedy(model, other, apart)
    with pytest.raises(EngineError, match="cannot forget"):
        scheduler.runtime.pop(0, 1)


@pytest.mark.parametrize(
    ("name", "elements"),
    [("lfm2", 1 * 2 * 16), ("nemotron_h", 1 * 2 * 16), ("deepseek_v2", 2 * 4 * 40)],
)
def test_only_attention_fills_the_cache(name: str, elements: int, checkpoints: Checkpoints) -> None:
    """Layers x heads x width of a head, for keys and for values."""
    found = recognise(checkpoints(name), quantization="q0f32")
    assert _cache_bytes(found, {}, 100) == 100 * 4 * 2 * elements

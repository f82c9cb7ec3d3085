"""phi3's two lists of rotary factors: below the length of training, above it, and across.

Every expected row is Hugging Face's for the prompt up to that row, because the list follows the
length of the whole sequence (its ``generate`` drops its cache where a sequence grows too long).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from built import Build, Built, Checkpoints
from tiny import LIMIT

from mlc_bridge.engine.runtime import Limits, Runtime
from mlc_bridge.engine.scheduler import Scheduler, Sequence

SHORT, LONG = LIMIT, 2 * LIMIT


@pytest.fixture(scope="module")
def model(built: Build, checkpoints: Checkpoints) -> Built:
    return built(checkpoints("phi3"), "q0f32")


def same(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("length", [SHORT - 1, SHORT, SHORT + 1, LONG])
def test_prompt_at_once(model: Built, length: int) -> None:
    ids = model.tokens(length)
    expected = model.expected(ids)
    same(model.lib.all_logits(model.lib.cache(), ids), expected)
    same(model.lib.prefill(model.lib.cache(), ids), expected[-1:])


def test_the_lists_differ(model: Built) -> None:
    """The same first tokens, read as part of a short and of a long sequence."""
    ids = model.tokens(LONG)
    assert np.abs(model.expected(ids)[:SHORT] - model.expected(ids[:SHORT])).max() > 0.1


def test_decoding_up_to_the_limit_and_behind_a_long_prompt(model: Built) -> None:
    lib, ids = model.lib, model.tokens(LONG)
    for begin, end in ((SHORT - 5, SHORT), (SHORT + 1, LONG)):
        kv = lib.cache()
        rows = [lib.prefill(kv, ids[:begin]), *(lib.decode(kv, t) for t in ids[begin:end])]
        same(np.concatenate(rows), model.expected(ids[:end])[begin - 1 :])


def test_long_prompt_in_chunks(model: Built) -> None:
    lib, ids, cut = model.lib, model.tokens(LONG), SHORT + 1
    kv = lib.cache()
    chunks = [lib.all_logits(kv, ids[:cut]), lib.all_logits(kv, ids[cut:])]
    same(np.concatenate(chunks), model.expected(ids))


def test_short_and_long_in_one_batch(model: Built) -> None:
    """Every sequence has its own list, in one prefill and in one decode."""
    lib, ids = model.lib, model.tokens(LONG)
    lengths = [SHORT - 3, SHORT + 9, 5, SHORT + 1]
    kv = lib.cache(4)
    wholes = [model.expected(ids[: n + 2]) for n in lengths]
    got = lib.batch_prefill(kv, [ids[:n] for n in lengths])
    same(got, np.stack([w[n - 1] for w, n in zip(wholes, lengths, strict=True)]))
    for step in range(2):
        got = lib.batch_decode(kv, [ids[n + step] for n in lengths])
        same(got, np.stack([w[n + step] for w, n in zip(wholes, lengths, strict=True)]))


class Greedy:
    """Takes the likeliest token until there are ``count``."""

    cancelled = False

    def __init__(self, count: int) -> None:
        self.count, self.tokens, self.logits = count, [], []

    def next_token(self, logits: np.ndarray) -> int | None:
        self.logits.append(np.array(logits))
        self.tokens.append(int(logits.argmax()))
        return self.tokens[-1] if len(self.tokens) < self.count else None

    def fail(self, error: BaseException) -> None:
        raise error


def scheduler(model: Built) -> Scheduler:
    limits = Limits(512, LONG, 4, 1024, restart_beyond=model.config.restart_beyond)
    library = SimpleNamespace(vm=model.lib.vm, device=model.lib.device)
    return Scheduler(Runtime(library, model.lib.params, limits, model.vocab, Path()))


def test_growing_across_the_limit(model: Built) -> None:
    """As ``generate``: beside others that stay short or were long from the beginning."""
    ids, run = model.tokens(LONG), scheduler(model)
    prompts, count = [ids[: SHORT - 8], ids[:9], ids[: SHORT + 3], ids[: SHORT - 2]], 20
    answers = [Greedy(count) for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        run.submit(Sequence(prompt, answer))
    while run.busy:
        run.step()
    for prompt, answer in zip(prompts, answers, strict=True):
        told = model.reference.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None
        )
        assert answer.tokens == told[0, len(prompt) :].tolist()
        for step, logits in enumerate(answer.logits):
            same(logits, model.expected([*prompt, *answer.tokens[:step]])[-1])


def test_a_cache_of_the_other_list_is_not_taken_over(model: Built) -> None:
    ids, run = model.tokens(LONG), scheduler(model)
    for prompt in (ids[: SHORT - 10], ids[: SHORT + 10], ids[: SHORT - 4]):
        answer = Greedy(1)
        run.submit(Sequence(prompt, answer))
        while run.busy:
            run.step()
        same(answer.logits[0], model.expected(prompt)[-1])


def test_two_long_prompts_share_no_first_chunk(
    model: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first leaves the second less room than shows its length; nothing is prefilled twice."""
    prompt, run, sizes = model.tokens(SHORT + 5), scheduler(model), []
    prefill = run.runtime.prefill
    monkeypatch.setattr(
        run.runtime,
        "prefill",
        lambda slots, runs: sizes.extend(map(len, runs)) or prefill(slots, runs),
    )
    answers = [Greedy(1), Greedy(1)]
    for answer in answers:
        run.submit(Sequence(prompt, answer))
    while run.busy:
        run.step()
    assert sizes == [len(prompt)] * 2
    for answer in answers:
        same(answer.logits[0], model.expected(prompt)[-1])

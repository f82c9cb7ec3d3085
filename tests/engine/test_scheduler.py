"""What the scheduler asks of the model: reuse of pasts, forks, pages; on the compiled example."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_bridge.engine import EngineConfig, MLCEngine, Runtime
from mlc_bridge.engine.scheduler import Scheduler
from mlc_bridge.engine.scheduler import Sequence as Prompt
from mlc_bridge.engine.threads import start_pool

pytestmark = pytest.mark.slow


class Greedy:
    """An answer of ``length`` tokens."""

    def __init__(self, length: int) -> None:
        self.length, self.cancelled = length, False
        self.tokens: list[int] = []

    def next_token(self, logits: np.ndarray) -> int | None:
        self.tokens.append(int(logits.argmax()))
        return None if len(self.tokens) == self.length else self.tokens[-1]

    def fail(self, error: BaseException) -> None:
        raise error


class Recording(Runtime):
    """The real runtime, with the sizes of its prefills and its largest decode batch."""

    prefilled: list[list[int]]
    widest = 0

    def prefill(self, sequences: Sequence[int], runs: Sequence[Sequence[int]]) -> np.ndarray:
        self.prefilled.append([len(run) for run in runs])
        return super().prefill(sequences, runs)

    def decode(self, sequences: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        self.widest = max(self.widest, len(tokens))
        return super().decode(sequences, tokens)


Work = Callable[[Scheduler, Recording], Any]


@pytest.fixture
def schedule(artifact: Path) -> Callable[..., Any]:
    """Runs work on a scheduler in a fresh thread, as the engine does."""

    def run(work: Work, **limits: Any) -> Any:
        box: list[Any] = []

        def inside() -> None:
            try:
                start_pool()
                runtime = Recording.open(artifact, config=EngineConfig(**limits))
                runtime.prefilled = []
                box.append(work(Scheduler(runtime), runtime))
            except BaseException as error:
                box.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if isinstance(box[0], BaseException):
            raise box[0]
        return box[0]

    return run


def finish(scheduler: Scheduler, *prompts: Prompt) -> None:
    for prompt in prompts:
        scheduler.submit(prompt)
    while scheduler.busy:
        scheduler.step()


FIRST = list(range(100, 150))


def test_next_turn_prefills_only_what_is_new(schedule: Callable[..., Any]) -> None:
    def chat(scheduler: Scheduler, runtime: Recording) -> tuple[list[list[int]], list[int]]:
        one = Greedy(20)
        finish(scheduler, Prompt(FIRST, one))
        two = Greedy(20)
        finish(scheduler, Prompt([*FIRST, *one.tokens, *range(200, 210)], two))
        return runtime.prefilled, two.tokens

    kept, answer = schedule(chat)
    anew, same = schedule(chat, prefix_cache=False)
    assert kept == [[50], [11]]  # the last token of an answer is never in the cache
    assert anew == [[50], [80]]
    assert answer == same


def test_same_prompt_again_costs_one_token(schedule: Callable[..., Any]) -> None:
    def twice(scheduler: Scheduler, runtime: Recording) -> tuple[list[list[int]], bool]:
        answers = [Greedy(8), Greedy(8)]
        for answer in answers:
            finish(scheduler, Prompt(FIRST, answer))
        return runtime.prefilled, answers[0].tokens == answers[1].tokens

    assert schedule(twice) == ([[50]], True)


def test_siblings_prefill_once(schedule: Callable[..., Any]) -> None:
    def siblings(scheduler: Scheduler, runtime: Recording) -> Any:
        answers = [Greedy(30) for _ in range(4)]
        finish(scheduler, Prompt(FIRST, answers[0], answers[1:]))
        return runtime.prefilled, runtime.widest, {tuple(a.tokens) for a in answers}

    prefilled, widest, texts = schedule(siblings)
    assert (prefilled, widest, len(texts)) == ([[50]], 4, 1)


def test_everything_is_given_back(schedule: Callable[..., Any]) -> None:
    def churn(scheduler: Scheduler, runtime: Recording) -> tuple[int, int]:
        free = runtime.free_pages
        random = np.random.default_rng(0)
        for _ in range(30):
            prompts = [
                Prompt(
                    random.integers(3, 4000, random.integers(1, 60)).tolist(),
                    Greedy(int(random.integers(1, 40))),
                    [Greedy(5) for _ in range(int(random.integers(0, 3)))],
                )
                for _ in range(int(random.integers(1, 7)))
            ]
            for prompt in prompts[::3]:
                prompt.answer.cancelled = bool(random.integers(0, 2))
            finish(scheduler, *prompts)
        while scheduler._evict():
            pass
        return free, runtime.free_pages

    before, after = schedule(churn, max_total_sequence_length=256, prefill_chunk_size=24)
    assert before == after


def test_a_short_cache_sends_sequences_back(schedule: Callable[..., Any]) -> None:
    def crowd(scheduler: Scheduler, runtime: Recording) -> Any:
        answers = [Greedy(60) for _ in range(4)]
        finish(scheduler, *(Prompt([i, *FIRST[:20]], a) for i, a in enumerate(answers)))
        return runtime.prefilled, runtime.widest, [a.tokens for a in answers]

    prefilled, widest, short = schedule(crowd, max_total_sequence_length=128)
    _, four, roomy = schedule(crowd)
    assert short == roomy
    assert (four, widest > 1) == (4, True)
    assert sum(map(len, prefilled)) > 4  # some prompts were prefilled again


def test_prompts_enter_while_others_decode(schedule: Callable[..., Any]) -> None:
    def overlap(scheduler: Scheduler, runtime: Recording) -> int:
        scheduler.submit(Prompt(FIRST, Greedy(30)))
        for _ in range(5):
            scheduler.step()
        finish(scheduler, Prompt(FIRST[::-1], Greedy(10)))
        return runtime.widest

    assert schedule(overlap) == 2


def test_engine_answers_the_same_with_and_without_prefix_cache(
    artifact: Path, engine: MLCEngine
) -> None:
    talk = [{"role": "user", "content": "What does os.path.join do?"}]
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}
    with MLCEngine(artifact, engine_config=EngineConfig(prefix_cache=False)) as plain:
        for _ in range(3):
            kept, anew = (
                e.chat.completions.create(messages=talk, **options) for e in (engine, plain)
            )
            assert kept.choices == anew.choices
            talk += [kept.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]

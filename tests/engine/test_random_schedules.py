"""Any schedule gives the texts of one by one, and loses neither page nor slot.

Requests come, fork, are cancelled and crowd each other out of a short cache, in an order that
hypothesis chooses and shrinks; the model is the compiled example."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mlc_bridge.engine import EngineConfig, Runtime
from mlc_bridge.engine.generation import PromptReader
from mlc_bridge.engine.scheduler import Scheduler
from mlc_bridge.engine.scheduler import Sequence as Prompt
from mlc_bridge.engine.threads import start_pool
from mlc_bridge.engine.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

LONGEST = 30
STEM = "def read_file(path):\n    with open(path) as file:\n        return file.read()\n\n"
TEXTS = [
    *(STEM + tail for tail in ("class ", "def write_file(", "import os\n", "if __name__ ==", "")),
    STEM * 2, "import sys\n", "for i in range(", "x",
]  # fmt: skip


class Greedy:
    """An answer of ``length`` tokens."""

    def __init__(self, length: int) -> None:
        self.length, self.cancelled = length, False
        self.tokens: list[int] = []

    @property
    def done(self) -> bool:
        return len(self.tokens) == self.length

    def next_token(self, logits: np.ndarray) -> int | None:
        if self.cancelled:
            return None
        self.tokens.append(int(logits.argmax()))
        return None if self.done else self.tokens[-1]

    def fail(self, error: BaseException) -> None:
        raise error


class Schedules(RuleBasedStateMachine):
    runtime: Runtime
    prompts: Sequence[list[int]]
    alone: Sequence[list[int]]
    scores: Sequence[list[float]]
    pages: int
    seen = (0, 0)  # preemptions, and tokens taken from the prefix cache

    def __init__(self) -> None:
        super().__init__()
        self.runtime.clear()
        self.scheduler = Scheduler(self.runtime)
        self.asked: list[tuple[int, list[Greedy], PromptReader | None]] = []

    @rule(
        which=st.integers(0, len(TEXTS) - 1),
        lengths=st.lists(st.integers(1, LONGEST), min_size=1, max_size=3),
        exact=st.booleans(),
        read=st.booleans(),
    )
    def ask(self, which: int, lengths: list[int], exact: bool, read: bool) -> None:
        answers = [Greedy(length) for length in lengths]
        tokens = self.prompts[which]
        reader = PromptReader(tokens, 0) if read else None
        first, *rest = answers
        self.scheduler.submit(
            Prompt(tokens, first, rest, exact=exact, reader=reader and reader.read)
        )
        self.asked.append((which, answers, reader))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        answers = [a for _, group, _ in self.asked for a in group if not a.done]
        if answers:
            data.draw(st.sampled_from(answers)).cancelled = True

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.scheduler.busy:
                self.scheduler.step()

    @invariant()
    def every_slot_is_somewhere(self) -> None:
        s = self.scheduler
        slots = [*s._slots, *(x.slot for x in s.running), *(p.slot for p in s._past)]
        assert sorted(slots) == list(range(self.runtime.limits.max_batch))

    def teardown(self) -> None:
        for _ in range(5000):
            if not self.scheduler.busy:
                break
            self.scheduler.step()
        assert not self.scheduler.busy
        for which, answers, reader in self.asked:
            for answer in answers:
                assert answer.done or answer.cancelled
                assert answer.tokens == self.alone[which][: len(answer.tokens)]
            if reader is not None and not any(a.cancelled for a in answers):
                found = [p.chosen for _, p in reader.entries if p is not None]
                np.testing.assert_allclose(found, self.scores[which], atol=1e-4)
        counts = self.scheduler.counts
        Schedules.seen = (self.seen[0] + counts.preempted, self.seen[1] + counts.reused)
        while self.scheduler._evict():
            pass
        assert self.runtime.free_pages == self.pages


def one_by_one(runtime: Runtime, tokens: list[int]) -> tuple[list[int], list[float]]:
    """Greedy answer and log probabilities of the prompt, without a scheduler."""
    runtime.add(0)
    logits = runtime.score(0, tokens).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = [float(row[token]) for row, token in zip(logprobs, tokens[1:], strict=False)]
    answer = [int(logits[-1].argmax())]
    while len(answer) < LONGEST:
        answer.append(int(runtime.decode([0], answer[-1:])[0].argmax()))
    runtime.clear()
    return answer, scores


def in_a_fresh_thread(work: Any) -> None:
    """As the engine does: the pool of kernels belongs to one thread."""
    problems: list[BaseException] = []

    def inside() -> None:
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


def test_any_schedule_is_as_good_as_one_by_one(artifact: Path) -> None:
    def work() -> None:
        start_pool()
        limits = EngineConfig(
            max_num_sequence=4, max_total_sequence_length=128, prefill_chunk_size=48
        )
        runtime = Runtime.open(artifact, config=limits)
        tokenizer = Tokenizer(artifact)
        prompts = [tokenizer.encode(text) for text in TEXTS]
        answers = [one_by_one(runtime, tokens) for tokens in prompts]
        Schedules.runtime, Schedules.prompts = runtime, prompts
        Schedules.alone, Schedules.scores = zip(*answers, strict=True)
        Schedules.pages = runtime.free_pages
        checks = settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(Schedules, settings=checks)
        assert min(Schedules.seen) >= 10, "the schedules were too easy"

    in_a_fresh_thread(work)

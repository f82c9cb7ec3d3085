"""What is promised of seeds: the same lib, weights, settings and machine give the same answer,
whatever runs beside it, whatever ran before it, and however often it had to leave.

Two things make it so: a seeded prompt is always read in the same pieces, and rows of a decode step
do not depend on each other. Two things are not promised bit by bit: while one with n > 1 runs,
attention over its shared pages rounds otherwise (log probabilities move by 1e-6), and so do other
settings. There Gumbel-max noise per token keeps nearly every draw."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_bridge.engine import EngineConfig, MLCEngine
from mlc_bridge.engine.sampler import Noise, Sampling, choose, softmax

PROMPTS = [f"def read_{i}(path, size={i}):\n    '''Read.'''\n" for i in range(8)]


def say(engine: MLCEngine, prompt: str, seed: int, **options: Any) -> Any:
    settings = {"temperature": 1.0, "max_tokens": 60, "ignore_eos": True, "logprobs": 0, **options}
    return engine.completions.create(prompt=prompt, seed=seed, **settings).choices


@pytest.fixture(scope="module")
def alone(artifact: Path) -> list[Any]:
    """Each answer of an engine that has done nothing else."""
    with MLCEngine(artifact, engine_config=EngineConfig(prefix_cache=False)) as engine:
        return [say(engine, prompt, i)[0] for i, prompt in enumerate(PROMPTS)]


@pytest.mark.slow
def test_a_seed_repeats_beside_others_and_after_them(engine: MLCEngine, alone: list[Any]) -> None:
    def one(i: int) -> tuple[int, Any]:
        return i, say(engine, PROMPTS[i], i)[0]

    for _ in range(2):  # the second time the prefix cache holds every prompt
        with ThreadPoolExecutor(8) as pool:
            for i, found in pool.map(one, [*range(8), *range(8)]):
                assert found == alone[i]  # texts, and log probabilities bit by bit


@pytest.mark.slow
def test_a_seed_repeats_when_pages_run_out(artifact: Path, alone: list[Any]) -> None:
    limits = EngineConfig(max_total_sequence_length=192)
    with MLCEngine(artifact, engine_config=limits) as small, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: say(small, PROMPTS[i], i)[0], range(8)))
        assert small.counts.preempted > 0
    assert found == alone


@pytest.mark.slow
def test_siblings_are_the_answers_of_their_seeds(engine: MLCEngine, alone: list[Any]) -> None:
    many = say(engine, PROMPTS[3], 1, n=5)
    assert [c.text for c in many] == [say(engine, PROMPTS[3], 1 + i)[0].text for i in range(5)]
    assert many[2].text == alone[3].text


@pytest.mark.slow
def test_other_pieces_of_a_prompt_change_next_to_nothing(artifact: Path, alone: list[Any]) -> None:
    limits = EngineConfig(prefill_chunk_size=16)
    with MLCEngine(artifact, engine_config=limits) as engine:
        found = [say(engine, prompt, i)[0] for i, prompt in enumerate(PROMPTS)]
    assert sum(a.text == b.text for a, b in zip(found, alone, strict=True)) >= 7


def test_rounding_turns_few_draws() -> None:
    """Against the inverse of the distribution function, on the same pairs of logits."""
    random, noise = np.random.default_rng(0), Noise(1)
    turned = inverse = 0
    for i in range(2000):
        logits = random.normal(0, 3, 4096).astype(np.float32)
        rounded = logits + random.normal(0, 3e-3, 4096).astype(np.float32)
        turned += choose(logits, Sampling(), noise, i) != choose(rounded, Sampling(), noise, i)
        u = random.random()
        a, b = (np.searchsorted(np.cumsum(softmax(x)), u) for x in (logits, rounded))
        inverse += a != b
    assert turned <= 12  # 0.6 %
    assert inverse > 4 * turned

"""Sampling against the rules written out in float64, and against the wanted distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_bridge.engine.sampler import Noise, Sampler, Sampling, choose, logprobs_of, softmax

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 0.5, 2.5], np.float32)
DRAWS = 20_000


def exact(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


def frequencies(temperature: float, top_p: float, **more: Any) -> np.ndarray:
    sampling, noise = Sampling(temperature=temperature, top_p=top_p, **more), Noise(7)
    draws = [choose(LOGITS, sampling, noise, position) for position in range(DRAWS)]
    return np.bincount(draws, minlength=len(LOGITS)) / DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.7, 0.95, 1.0])
def test_draws_follow_the_cut_distribution(temperature: float, top_p: float) -> None:
    p = exact(LOGITS / temperature)
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    wanted = np.zeros_like(p)
    wanted[kept] = p[kept] / p[kept].sum()
    found = frequencies(temperature, top_p)
    sigma = np.sqrt(wanted * (1 - wanted) / DRAWS)
    assert (np.abs(found - wanted) <= 4.5 * sigma).all()
    assert (found[wanted == 0] == 0).all()


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({"top_k": 2}, [1, 5]),
        ({"top_k": 3, "top_p": 0.6}, [1, 5]),
        ({"min_p": 0.3}, [1, 2, 5]),
        ({"min_p": 0.99}, [1]),
        ({"top_k": 100, "min_p": 0.0}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_other_cuts(cut: dict[str, Any], kept: list[int]) -> None:
    p = exact(LOGITS)
    wanted = np.zeros_like(p)
    wanted[kept] = p[kept] / p[kept].sum()
    found = frequencies(1.0, **{"top_p": 1.0, **cut})
    assert (np.abs(found - wanted) <= 4.5 * np.sqrt(wanted * (1 - wanted) / DRAWS) + 1e-9).all()
    assert set(np.flatnonzero(found)) == set(kept)


def test_noise_depends_on_seed_and_position_alone() -> None:
    one, other = Noise(3), Noise(3)
    later = one.at(5, 100)
    one.at(0, 7)
    assert (one.at(5, 100) == later).all()
    assert (other.at(5, 50) == later[:50]).all()
    assert (other.at(6, 100) != later).all()
    assert (Noise(4).at(5, 100) != later).all()


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
def test_greedy(temperature: float, top_p: float) -> None:
    assert set(np.flatnonzero(frequencies(temperature, top_p))) == {1}


def test_seed_repeats_and_differs() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=2.0), seed)
        return [sampler.next(LOGITS)[0] for _ in range(50)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)


def test_penalties_and_bias_by_the_formula() -> None:
    sampling = Sampling(
        temperature=0.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=1.5,
        logit_bias={3: 2.0},
        logprobs=len(LOGITS),
    )
    sampler = Sampler(sampling)
    counts: dict[int, int] = {}
    for _ in range(6):
        x = LOGITS.astype(np.float64)
        x[3] += 2.0
        for t, c in counts.items():
            x[t] -= 0.5 + 0.25 * c
            x[t] = x[t] * 1.5 if x[t] < 0 else x[t] / 1.5
        token, logprobs = sampler.next(LOGITS)
        assert token == int(x.argmax())
        assert logprobs is not None
        np.testing.assert_allclose(logprobs.chosen, np.log(exact(x))[token], atol=1e-5)
        counts[token] = counts.get(token, 0) + 1
    assert LOGITS[1] == 3.0  # the model's logits are left alone
    assert len(counts) > 1


def test_mask_forbids() -> None:
    mask = np.zeros(len(LOGITS), bool)
    mask[[0, 4]] = True
    sampler = Sampler(Sampling(temperature=1.0), 3)
    assert {sampler.next(LOGITS, mask)[0] for _ in range(200)} == {0, 4}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40, unique=True),
    st.integers(0, 5),
)
def test_logprobs_are_log_softmax(values: list[float], count: int) -> None:
    logits = np.array(values, np.float32)
    count = min(count, len(values))
    found = logprobs_of(logits, 1, count)
    wanted = np.log(exact(logits))
    np.testing.assert_allclose(found.chosen, wanted[1], atol=1e-9)
    assert [i for i, _ in found.top] == list(np.argsort(-logits, kind="stable")[:count])
    np.testing.assert_allclose([v for _, v in found.top], np.sort(wanted)[::-1][:count], atol=1e-9)


def test_softmax_of_extreme_logits() -> None:
    p = softmax(np.array([[1e4, -1e4, 9999.0]], np.float32))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    assert np.isfinite(p).all()

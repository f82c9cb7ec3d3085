"""Observers: counts lose nothing, scales are the definitions' own, errors are measured by hand."""

import ml_dtypes
import numpy as np
import pytest

from mlc_bridge.schemes.float8 import E4M3
from mlc_bridge.stages.observers import (
    OBSERVERS,
    PERCENTILE,
    SMALLEST_SCALE,
    Histogram,
    fit,
    scale_of,
)

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


def values(dtype=np.float16, size=20_000, seed=0):
    """Normal values with a few far outliers."""
    x = np.random.default_rng(seed).standard_normal(size)
    x[:: size // 10] *= 50
    return x.astype(dtype)


def seen(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.mark.parametrize("dtype", DTYPES)
def test_amax_is_exact_and_order_does_not_matter(dtype):
    x = values(dtype).reshape(4, 50, 100)
    one, parts = seen(x), seen(*x[::-1])
    assert one.amax == np.abs(x.astype(np.float32)).max()
    assert one.amax == parts.amax
    assert np.array_equal(one.counts, parts.counts)
    assert one.total == x.size


def test_float16_counts_are_the_whole_distribution():
    x = values()
    magnitudes, counts = seen(x).occupied()
    wanted, times = np.unique(np.abs(x), return_counts=True)
    assert np.array_equal(magnitudes, wanted.astype(np.float32))
    assert np.array_equal(counts, times)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_are_counted_apart(dtype):
    x = values(dtype)
    x[:3] = [np.inf, -np.inf, np.nan]
    histogram = seen(x)
    assert histogram.nonfinite == 3
    assert histogram.amax == np.abs(x[3:].astype(np.float32)).max()


def test_scales_follow_their_definitions():
    x = values()
    size = np.sort(np.abs(x.astype(np.float32)))
    histogram = seen(x)
    assert scale_of(histogram, "max") == size[-1] / np.float32(448)
    rank = int(np.ceil(PERCENTILE * x.size)) - 1
    assert scale_of(histogram, "percentile") == size[rank] / np.float32(448)
    errors = []
    for step in range(64):
        scale = np.float32(float(size[-1]) * 2 ** (-step / 16) / 448)
        back = E4M3.round(size / scale).astype(np.float64) * float(scale)
        errors.append(np.square(size - back).sum())
    best = float(size[-1]) * 2 ** (-int(np.argmin(errors)) / 16) / 448
    assert scale_of(histogram, "mse") == pytest.approx(best, rel=1e-6)


def test_mse_never_does_worse_than_max():
    for seed in range(5):
        histogram = seen(values(seed=seed))
        error = {key: fit(histogram, scale_of(histogram, key)).error for key in OBSERVERS}
        assert error["mse"] <= error["max"]


def test_fit_counts_what_saturates_and_vanishes():
    x = np.array([0, 9e-4, -1, 100, 448, 463, 466, -1000], np.float16)
    found = fit(seen(x), np.float32(1))
    assert found.saturated == 2 / 8
    assert found.vanished == 1 / 8
    back = E4M3.round(x).astype(np.float64)
    exact = x.astype(np.float64)
    assert found.error == pytest.approx(np.square(exact - back).sum() / np.square(exact).sum())


def test_a_dead_layer_has_a_scale_that_divides():
    histogram = seen(np.zeros(10, np.float16))
    for key in OBSERVERS:
        scale = scale_of(histogram, key)
        assert scale == np.float32(SMALLEST_SCALE)
        assert fit(histogram, scale).error == 0

from __future__ import annotations

import random
import statistics

import pytest

from ksearch.evaluate.confidence import bootstrap_ci, half_interquartile_us


def noise(seed: int, count: int = 40) -> list[float]:
    generator = random.Random(seed)
    return [100.0 * (1 + 0.02 * generator.gauss(0, 1)) for _ in range(count)]


def test_the_interval_covers_the_true_speedup() -> None:
    """Of 200 experiments whose true speedup is 1.25, about 95 % must cover it."""
    covered = 0
    for seed in range(200):
        candidate = [sample / 1.25 for sample in noise(1000 + seed)]
        low, high = bootstrap_ci(noise(seed), candidate, seed)
        covered += low <= 1.25 <= high
    assert 180 <= covered <= 200


def test_what_slows_a_whole_round_down_cancels() -> None:
    drift = [1.0 + 0.01 * i for i in range(40)]
    baseline = [200.0 * d for d in drift]
    candidate = [100.0 * d for d in drift]
    assert bootstrap_ci(baseline, candidate) == pytest.approx((2.0, 2.0))


def test_equal_things_are_not_told_apart() -> None:
    low, high = bootstrap_ci(noise(1), noise(2))
    assert low < 1.0 < high


def test_the_same_seed_gives_the_same_interval() -> None:
    assert bootstrap_ci(noise(1), noise(2), 7) == bootstrap_ci(noise(1), noise(2), 7)


def test_samples_must_pair_up() -> None:
    with pytest.raises(ValueError, match="pair up"):
        bootstrap_ci([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="pair up"):
        bootstrap_ci([], [])


def test_half_interquartile() -> None:
    samples = [1.0, 2.0, 3.0, 4.0, 100.0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    assert half_interquartile_us(samples) == (high - low) / 2 == 1.0
    assert half_interquartile_us([5.0]) == 0.0

"""How sure a measured difference is; plain arithmetic on lists of samples, without torch."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

_RESAMPLES = 1000


def half_interquartile_us(samples_us: Sequence[float]) -> float:
    """Half the distance between the quartiles; 0.0 for fewer than two samples."""
    if len(samples_us) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples_us, n=4, method="inclusive")
    return (high - low) / 2


def bootstrap_ci(
    baseline_us: Sequence[float], candidate_us: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """95 % confidence interval of the speedup, the median of baseline / candidate over paired samples.

    Samples pair up by round: what slowed a whole round down (clocks, heat, a neighbour) cancels.
    Raises ValueError where the lists are empty or of different lengths.
    """
    if not baseline_us or len(baseline_us) != len(candidate_us):
        raise ValueError(f"samples must pair up, got {len(baseline_us)} and {len(candidate_us)}")
    ratios = [base / candidate for base, candidate in zip(baseline_us, candidate_us, strict=True)]
    choose = random.Random(seed)
    medians = sorted(statistics.median(choose.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]

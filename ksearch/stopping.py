"""When a search ends, and why: by its limits, or by itself when more trials are not expected to pay."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

from ksearch.types import Outcome, Status, Target


class Ended(enum.StrEnum):
    """Why a search ended."""

    CEILING = "at the ceiling"
    NO_GAIN = "no more to gain"
    TRIALS = "trials"
    BUDGET = "budget"
    EXHAUSTED = "space exhausted"
    INTERRUPTED = "interrupted"


_LEAST, _SHARE, _GAIN = 120, 0.4, 0.005
"""No gain of 0.5 % over the last 40 % of at least 120 trials.

By replay over ten tables of an H200, some 2700 configs and five seeds each (`scripts/bench_search_quality.py
--replay docs/results/search-quality-h200.jsonl.gz --budgets 25 50 100 200`): searches end after 119 of 200
trials on average, with 0.991 of the best known speed in the mean and 0.903 at the least. That one is softmax
8x131072, whose single screenings of 9 us scatter by 10 %; of the other nine it is after 116, with 0.9998 and
0.996. With 60 trials at least, 40 without a gain, and 1 % from 24 trials on for the ceiling: after 64, with
0.9988 and 0.991. The guesses of these searches were chosen from an earlier table of the same workloads.
"""

_FEWEST = 60
"""Trials without a gain, at least."""

_LEAST_AT_CEILING = 60
"""The copy is no wall: sigmoid 4096x393216 was left at 0.989 of `copy_` after 44 trials, and 1.006 is
there."""

_NEAR = 0.003
"""Medians of two copies in a row differ by as much."""

_LATENCY_US = 20.0
"""Shorter calls are bound by latency: one that moves few bytes in 6 us is no bound for another."""


def early(outcomes: Sequence[Outcome], target: Target, ceiling_us: float) -> Ended | None:
    """Why a search with these outcomes, in the order asked, should end by itself; None if it should go on."""
    passed = [outcome for outcome in outcomes if outcome.status is Status.PASSED]
    times = [outcome.time_us for outcome in passed if outcome.time_us is not None]
    if len(times) < _LEAST_AT_CEILING:
        return None
    best_us = min(times)
    noise = _noise(passed[times.index(best_us)])
    if _is_bound(target, ceiling_us) and best_us <= ceiling_us * (1 + max(_NEAR, noise)):
        return Ended.CEILING
    if len(times) < _LEAST:
        return None
    before = times[: -max(_FEWEST, round(_SHARE * len(times)))]
    return Ended.NO_GAIN if min(before) <= best_us * (1 + max(_GAIN, noise)) else None


def _is_bound(target: Target, ceiling_us: float) -> bool:
    """On a CPU kernels beat PyTorch's copy by 16 % (softmax, 256x4096): there it bounds nothing."""
    return target.backend == "cuda" and ceiling_us >= _LATENCY_US


def _noise(outcome: Outcome) -> float:
    """Two standard errors of the median, as a share of it: 1.86 half quartile distances by the square root
    of the count are one, for normal noise."""
    if not outcome.time_us or not outcome.repeats:
        return 0.0
    return 2 * 1.86 * outcome.spread_us / math.sqrt(outcome.repeats) / outcome.time_us

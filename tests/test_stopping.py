"""When a search ends by itself: at the ceiling, or when nothing was gained for long."""

from __future__ import annotations

import pytest

from ksearch.stopping import Ended, early
from ksearch.types import Outcome, Status, Target

GPU = Target("cuda", "sm_90", "H200", units=132)
CPU = Target("cpu", "x86_64", "Test CPU", units=2)
FAILED = Outcome(Status.WRONG, message="no")


def passed(*times_us: float, spread: float = 0.0) -> list[Outcome]:
    """Each measured 25 times; `spread` as a share of the time."""
    return [Outcome(Status.PASSED, t, spread_us=spread * t, repeats=25) for t in times_us]


def ends_after(outcomes: list[Outcome], target: Target = GPU, ceiling_us: float = 50.0) -> int | None:
    """The number of outcomes at which the search would have ended."""
    ends = (n for n in range(len(outcomes) + 1) if early(outcomes[:n], target, ceiling_us))
    return next(ends, None)


def test_it_ends_when_nothing_was_gained_for_60_trials() -> None:
    assert ends_after(passed(*[100.0] * 150)) == 120
    # the best is the 80th: 60 later ones without a gain
    assert ends_after(passed(*[100.0] * 79, 90.0, *[100.0] * 80)) == 140
    assert early(passed(*[100.0] * 79, 90.0, *[100.0] * 80), GPU, 50.0) is Ended.NO_GAIN


def test_a_long_search_is_given_more_time() -> None:
    """40 % of the trials so far: the best is the 180th, so not before the 300th."""
    outcomes = passed(*[100.0 - n for n in range(0, 60, 2) for _ in range(6)], *[40.0] * 140)
    assert ends_after(outcomes, ceiling_us=30.0) == pytest.approx(300, abs=8)


@pytest.mark.parametrize(
    ("gain", "spread", "ends"), [(0.004, 0.0, 120), (0.02, 0.0, None), (0.02, 0.04, 120)]
)
def test_what_noise_explains_is_no_gain(gain: float, spread: float, ends: int | None) -> None:
    """Of 4 % half quartile distance in 25 samples, two standard errors of the median are 3 %."""
    outcomes = passed(*[100.0] * 100, *[100.0 * (1 - gain)] * 24, spread=spread)
    assert ends_after(outcomes) == ends


def test_failed_candidates_do_not_count() -> None:
    assert ends_after([FAILED] * 300) is None
    assert ends_after([*[FAILED] * 50, *passed(*[100.0] * 120)]) == 170


def test_at_the_ceiling_it_ends_after_60_trials() -> None:
    outcomes = passed(50.1, *[60.0] * 100)
    assert ends_after(outcomes) == 60
    assert early(outcomes, GPU, 50.0) is Ended.CEILING
    assert early(passed(50.2, *[60.0] * 80), GPU, 50.0) is None


def test_where_the_copy_is_no_bound_it_goes_on() -> None:
    """A call bound by latency may be faster than a copy of its bytes; on a CPU most are."""
    assert ends_after(passed(6.0, *[7.0] * 150), ceiling_us=6.5) == 120
    assert ends_after(passed(50.1, *[60.0] * 150), target=CPU) == 120

from __future__ import annotations

import pytest

from ksearch import pace
from ksearch.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace.time, "perf_counter", clock.perf_counter)
    return clock


def test_what_one_search_leaves_over_is_shared_by_all_that_follow(clock: Clock) -> None:
    study = Pace(100.0, [1.0, 1.0, 2.0])
    with study.turn() as share_s:
        assert share_s == 25.0
        clock.now_s += 5
    with study.turn() as share_s:
        assert share_s == pytest.approx(95 / 3)
        clock.now_s += 60
    with study.turn() as share_s:
        assert share_s == pytest.approx(35.0)
    assert study.turns == 3


def test_without_a_limit_nothing_is_shared_out_and_nothing_is_ever_spent(clock: Clock) -> None:
    study = Pace(None, [1.0, 1.0])
    with study.turn() as share_s:
        clock.now_s += 1e6
    assert share_s is None
    assert not study.is_spent


def test_a_share_is_enough_to_find_something_or_is_left_for_another_run(clock: Clock) -> None:
    study = Pace(12.0, [1.0] * 10)
    shares = []
    while not study.is_spent:
        with study.turn() as share_s:
            shares.append(share_s)
            clock.now_s += share_s or 0.0
    assert shares == [5.0, 5.0]
    assert not Pace(2.0, [1.0]).is_spent, "the first one always has its turn"
    with Pace(2.0, [1.0, 1.0]).turn() as share_s:
        assert share_s == 2.0


def test_a_search_that_fails_has_had_its_turn(clock: Clock) -> None:
    study = Pace(20.0, [1.0, 1.0])
    with pytest.raises(ValueError, match="broken"), study.turn():
        raise ValueError("broken")
    with study.turn() as share_s:
        assert share_s == 20.0


def test_the_time_left_is_guessed_from_the_searches_so_far(clock: Clock) -> None:
    study = Pace(None, [1.0] * 4)
    assert study.left_s is None
    with study.turn():
        clock.now_s += 10
    assert study.left_s == 30.0
    with study.turn():
        clock.now_s += 4
        assert study.left_s == 26.0
        clock.now_s += 100
        assert study.left_s == 20.0, "one that takes long does not make the others faster"


def test_the_time_left_is_never_more_than_may_be_spent(clock: Clock) -> None:
    study = Pace(15.0, [1.0] * 4)
    assert study.left_s == 15.0
    with study.turn():
        clock.now_s += 10
    assert study.left_s == 5.0

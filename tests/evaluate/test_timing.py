from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest
import torch

from ksearch import backends
from ksearch.evaluate.timing import Call, CpuClock, CudaClock, Shot, clock, in_time, measure, race


class Scripted:
    """A clock whose samples are written down; calls are made, as by a real one."""

    cap_s = 10.0

    def __init__(self, samples_us: Iterator[float]) -> None:
        self.samples_us = samples_us
        self.batches: list[int] = []

    def time(self, calls: Sequence[Call]) -> list[float]:
        self.batches.append(len(calls))
        for call in calls:
            call()
        return [next(self.samples_us) for _ in calls]


def steady(value: float = 100.0) -> Iterator[float]:
    while True:
        yield value


def noisy() -> Iterator[float]:
    while True:
        yield from (100.0, 140.0, 80.0, 120.0)


def nothing() -> None:
    pass


def test_a_steady_call_is_measured_ten_times() -> None:
    result = measure(Scripted(steady()), nothing)
    assert (result.time_us, result.spread_us, result.repeats) == (100.0, 0.0, 10)


def test_a_noisy_call_is_measured_more_often_but_not_forever() -> None:
    result = measure(Scripted(noisy()), nothing)
    assert result.repeats == 50
    assert result.time_us == 110.0
    assert result.spread_us > 10


def test_one_outlier_changes_nothing() -> None:
    samples = [100.0] * 4 + [5000.0] + [100.0] * 100
    assert measure(Scripted(iter(samples)), nothing).time_us == 100.0


@pytest.mark.parametrize(("incumbent_us", "repeats"), [(60.0, 3), (70.0, 10), (None, 10)])
def test_clearly_slower_than_the_incumbent_stops_after_three(
    incumbent_us: float | None, repeats: int
) -> None:
    assert measure(Scripted(steady()), nothing, incumbent_us).repeats == repeats


def test_a_slow_call_is_measured_five_times_beyond_the_cap() -> None:
    timer = Scripted(noisy())
    timer.cap_s = 0.01
    assert measure(timer, lambda: time.sleep(0.01)).repeats == 5


def test_race_gives_each_a_sample_a_round_in_changing_order() -> None:
    ran: list[str] = []
    calls = [lambda: ran.append("a"), lambda: ran.append("b"), lambda: ran.append("c")]

    class Naming(Scripted):
        def time(self, calls: Sequence[Call]) -> list[float]:
            super().time(calls)
            return [{"a": 1.0, "b": 2.0, "c": 3.0}[name] for name in ran[-len(calls) :]]

    samples = race(Naming(steady()), calls, budget_s=10.0, seed=1, rounds=20)
    assert samples == [[1.0] * 20, [2.0] * 20, [3.0] * 20]
    orders = {tuple(ran[i : i + 3]) for i in range(3, len(ran), 3)}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) > 3


def test_race_keeps_to_its_budget_after_three_rounds() -> None:
    began = time.perf_counter()
    samples = race(Scripted(steady()), [lambda: time.sleep(0.02)], budget_s=0.2, seed=1)
    assert 3 <= len(samples[0]) <= 10
    assert time.perf_counter() - began < 1.0
    assert len(race(Scripted(steady()), [nothing], budget_s=0.0, seed=1)[0]) == 3


def test_the_clock_of_the_cpu_measures_time_and_empties_the_cache() -> None:
    timer = clock(backends.get("cpu").target())
    assert isinstance(timer, CpuClock)
    slept = timer.time([lambda: time.sleep(0.01), nothing])
    assert 10_000 <= slept[0] < 200_000
    assert slept[1] < 5_000
    assert timer._walk.nbytes >= 64 << 20


class Host:
    """Takes so long to put a call into the queue; a flush keeps the device for 60 us, and the call for 7."""

    def __init__(self, *host_us: float) -> None:
        self.host_us = dict(enumerate(host_us))
        self.calls: list[Call] = [lambda: None for _ in host_us]
        self.shots: list[tuple[list[int], int]] = []

    def shoot(self, calls: Sequence[Call], flushes: int) -> list[Shot]:
        places = [self.calls.index(call) for call in calls]
        self.shots.append((places, flushes))
        lead_us = 60.0 * flushes
        spent_us = [self.host_us[place] + 4.0 * flushes for place in places]
        return [Shot(lead_us, us, max(7.0, us - lead_us), flushes) for us in spent_us]


def test_a_host_that_is_ahead_is_asked_once() -> None:
    host = Host(10.0, 30.0, 55.0)
    assert in_time(host.shoot, host.calls) == [7.0] * 3
    assert host.shots == [([0, 1, 2], 1)]


def test_what_the_host_was_late_for_is_taken_again_behind_enough_work() -> None:
    host = Host(10.0, 130.0, 20.0, 90.0)
    assert in_time(host.shoot, host.calls) == [7.0] * 4
    assert host.shots == [([0, 1, 2, 3], 1), ([1, 3], 5)]


def test_a_host_that_is_always_late_is_left_after_two_more_attempts() -> None:
    host = Host(10_000.0)
    assert in_time(host.shoot, host.calls) == [10_000.0 + 4 * 64 - 60 * 64]
    assert [flushes for _, flushes in host.shots] == [1, 64, 64]


@pytest.mark.gpu
def test_the_clock_of_a_gpu_does_not_measure_a_late_host() -> None:
    timer = clock(backends.get("cuda").target())
    assert isinstance(timer, CudaClock)
    x = torch.zeros(64, device="cuda")

    def slow() -> None:
        x.add_(1)
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        x.add_(1)

    timer.time([slow])
    # Once: where other processes use the GPU, the first event may wait until the host is done.
    assert max(timer._shoot([slow], 1)[0].time_us for _ in range(10)) > 300
    assert min(timer.time([slow] * 10)) < 100  # not the most: other processes may use the GPU meanwhile

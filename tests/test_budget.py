from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from ksearch import budget
from ksearch.budget import Budget, interrupts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is moved."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock.now)
    return clock


def test_trials_end_it(clock: SimpleNamespace) -> None:
    limit = Budget(10, None, final_s=5.0)
    clock.now += 1e6
    assert not limit.is_over(9)
    assert limit.is_over(10)
    assert limit.final_s == 5.0


def test_seconds_end_it_in_time_for_the_final(clock: SimpleNamespace) -> None:
    limit = Budget(None, 100.0, final_s=5.0)
    clock.now += 94.9
    assert not limit.is_over(10**6)
    clock.now += 0.2
    assert limit.is_over(0)


def test_a_short_budget_has_a_short_final(clock: SimpleNamespace) -> None:
    limit = Budget(None, 10.0, final_s=5.0)
    assert limit.final_s == pytest.approx(1.5)
    clock.now += 8.4
    assert not limit.is_over(0)
    clock.now += 0.2
    assert limit.is_over(0)


def test_whichever_ends_first(clock: SimpleNamespace) -> None:
    assert Budget(5, 100.0, 5.0).is_over(5)
    both = Budget(5, 100.0, 5.0)
    clock.now += 96
    assert both.is_over(1)


def test_time_left(clock: SimpleNamespace) -> None:
    timed, counted, both = Budget(None, 100.0, 5.0), Budget(10, None, 5.0), Budget(1000, 100.0, 5.0)
    assert counted.left_s(0) is None, "nothing to go by yet"
    clock.now += 20
    assert timed.left_s(7) == both.left_s(7) == pytest.approx(75)
    assert counted.left_s(4) == pytest.approx(30)
    assert counted.left_s(10) == counted.left_s(12) == 0
    clock.now += 1000
    assert timed.left_s(7) == 0


def test_phases_add_up_and_count_what_failed(clock: SimpleNamespace) -> None:
    limit = Budget(10, None, 5.0)
    for seconds in (1, 2):
        with limit.phase("compile"):
            clock.now += seconds

    def failing() -> None:
        with limit.phase("check"):
            clock.now += 4
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        failing()
    assert dict(limit.phases_s) == {"compile": 3.0, "check": 4.0}
    assert limit.elapsed_s == 7.0


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_sets_the_event_and_the_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        with interrupts() as event:
            assert not event.is_set()
            interrupt()
            assert event.is_set()
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_afterwards_an_interrupt_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="inside"), interrupts():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_hear_no_signals_and_work_all_the_same() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def work() -> None:
        with interrupts() as event:
            seen.append(event.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before

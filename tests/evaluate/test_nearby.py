"""Winners on other numbers of rows: timed where they are right, and found out where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from ksearch import backends, operators
from ksearch.evaluate import nearby
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.messages import Job, Nearby
from ksearch.evaluate.problem import Problem
from ksearch.launch import Launch
from ksearch.promotion import _near


class Clock:
    """Every call takes 5 us, so that only what is right matters."""

    cap_s = 1.0

    def time(self, calls):
        for call in calls:
            call()
        return [5.0] * len(calls)


@pytest.fixture(params=["softmax", "add_rmsnorm", "mul"])
def problem(request):
    options = {"mul": {"other": "column"}}.get(request.param, {})
    workload = operators.get(request.param).workload((6, 40), **options)
    return Problem(Job(request.param, workload, backends.get("cpu").target()))


def pytorch(problem: Problem, rows: int, mistake=None):
    """A candidate that is PyTorch itself, and then makes a mistake."""

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        for output, result in zip(outputs, problem.results(tensors, rows), strict=True):
            output.values.copy_(result.view(output.values.shape))
        if mistake is not None:
            mistake(outputs[-1])

    return run


def measure(problem: Problem, rows: int, mistake=None) -> Nearby:
    run = pytorch(problem, rows, mistake)
    return nearby.measure(problem, run, rows, Clock(), budget_s=1.0, seed=0)


@pytest.mark.parametrize("rows", [1, 3, 12, 25])
def test_what_is_right_is_timed(problem: Problem, rows: int) -> None:
    assert measure(problem, rows) == Nearby(rows, 1.0)


def leave_last_row(output: Guarded) -> None:
    output.poison(0)
    output.values[:-1] = 0.01


def swap_rows(output: Guarded) -> None:
    output.values[:] = output.values.flip(0)


def write_too_far(output: Guarded) -> None:
    output.raw[-1] = 0


@pytest.mark.parametrize("mistake", [leave_last_row, swap_rows, write_too_far])
def test_what_is_grossly_wrong_is_seen(problem: Problem, mistake) -> None:
    assert measure(problem, 12, mistake) == Nearby(12, 0.0)


def winner(rows: int) -> SimpleNamespace:
    workload = operators.get("softmax").workload((rows, 40))
    return SimpleNamespace(workload=workload, speedup=1.5, time_us=10.0, baseline_us=15.0)


class Worker:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def nearby(self, candidate, rows: int, budget_s: float) -> Nearby | None:
        self.asked.append(rows)
        return None if rows > 300 else Nearby(rows, rows / 100)


def near(rows: int, most_rows: int, budget_s: float):
    worker = Worker()
    candidate = SimpleNamespace(launch=Launch(most_rows=most_rows))
    return _near(winner(rows), candidate, worker, budget_s), worker.asked


def test_a_region_is_measured_from_its_middle() -> None:
    points, asked = near(100, 10**6, 10.0)
    assert asked == [50, 200, 25, 400]
    assert points == [[25, 0.25], [50, 0.5], [100, 1.5], [200, 2.0]], "there was no room for 400 rows"


def test_no_more_than_the_kernel_takes_and_the_time_allows() -> None:
    assert near(100, 150, 10.0) == ([[25, 0.25], [50, 0.5], [100, 1.5]], [50, 25])
    assert near(100, 0, 10.0) == ([[100, 1.5]], [])
    assert near(100, 10**6, 1e-6) == ([[100, 1.5]], [])
    assert near(1, 10**6, 10.0)[1] == [2, 4]

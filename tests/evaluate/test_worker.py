from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import backends, operators
from ksearch.errors import BadShape, UserFileError, WorkerError
from ksearch.evaluate.messages import Job, Ready
from ksearch.evaluate.worker import Worker
from ksearch.launch import Launch
from ksearch.types import Candidate, Status
from tests.evaluate import kernels

ROWS, COLS = 67, 1000


def job(op: str = "softmax", shape: tuple[int, ...] = (ROWS, COLS), **options: object) -> Job:
    found = operators.resolve(op)
    return Job(found.location, found.workload(shape), backends.get("cpu").target(), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Worker, Ready]]:
    with Worker(job(), timeout_s=4.0) as worker:
        yield worker, worker.start()


@pytest.fixture(scope="module")
def right(folder: Path) -> Candidate:
    return kernels.build(kernels.CPU_SOFTMAX, COLS, folder)


def test_start_tells_what_candidates_are_compared_with(started: tuple[Worker, Ready]) -> None:
    ready = started[1]
    assert ready.ceiling_us > 1
    assert ready.baseline_us > 10  # 67,000 exponentials
    assert ready.memory_bytes > 10 << 20
    assert {"ksearch", "python", "torch", "device"} <= set(ready.environment)


def test_a_right_kernel_passes_with_a_time(worker: Worker, right: Candidate) -> None:
    outcome = worker.screen(right)
    assert outcome.status is Status.PASSED, outcome.message
    assert outcome.time_us is not None
    assert outcome.time_us > 10  # 67,000 exponentials, twice, one at a time
    assert outcome.repeats >= 5
    assert outcome.error is not None
    assert 0 < outcome.error <= 1


def test_clearly_slower_than_the_incumbent_is_timed_briefly(worker: Worker, right: Candidate) -> None:
    outcome = worker.screen(right, incumbent_us=1.0)
    assert (outcome.status, outcome.repeats) == (Status.PASSED, 3)


@pytest.mark.parametrize("name", kernels.CPU_WRONG)
def test_every_planted_error_gets_its_status(
    name: str, worker: Worker, right: Candidate, folder: Path
) -> None:
    body, status, message = kernels.CPU_WRONG[name]
    respawns = worker.respawns
    outcome = worker.screen(kernels.build(body, COLS, folder))
    assert outcome.status is status, outcome
    assert re.search(message, outcome.message), outcome.message
    assert outcome.time_us is None
    # The study goes on; and only what may have damaged the process costs it.
    assert worker.screen(right).status is Status.PASSED
    harmless = status in (Status.WRONG, Status.NONDETERMINISTIC)
    assert worker.respawns == respawns + (0 if harmless else 1)


@pytest.fixture(scope="module")
def pair_worker(folder: Path) -> Iterator[Worker]:
    ops = folder / "pair_op.py"
    ops.write_text("import ksearch\n@ksearch.op\ndef sum_and_difference(x, y):\n    return x + y, x - y\n")
    with Worker(job(f"{ops}:sum_and_difference"), timeout_s=4.0) as worker:
        worker.start()
        yield worker


def test_a_right_kernel_of_two_outputs_passes_and_races(pair_worker: Worker, folder: Path) -> None:
    candidate = kernels.build(kernels.CPU_PAIR, COLS, folder, prologue=kernels.CPU_PAIR_PROLOGUE)
    assert pair_worker.screen(candidate).status is Status.PASSED
    (entry,) = pair_worker.finals([candidate], budget_s=0.2).entries
    assert entry.outcome.status is Status.PASSED
    assert set(entry.errors) == {"uniform", "normal", "spike", "special"}


@pytest.mark.parametrize("name", kernels.CPU_PAIR_WRONG)
def test_an_error_in_one_of_two_outputs_is_found_and_said(
    name: str, pair_worker: Worker, folder: Path
) -> None:
    body, status, message = kernels.CPU_PAIR_WRONG[name]
    candidate = kernels.build(body, COLS, folder, prologue=kernels.CPU_PAIR_PROLOGUE)
    outcome = pair_worker.screen(candidate)
    assert outcome.status is status, outcome
    assert re.match(message, outcome.message), outcome.message
    (entry,) = pair_worker.finals([candidate], budget_s=0.1).entries
    assert entry.outcome.status is status, entry.outcome


def test_a_binary_that_does_not_load_is_a_launch_error(
    worker: Worker, right: Candidate, folder: Path
) -> None:
    broken = folder / "broken.so"
    broken.write_bytes(b"not a library")
    artifact = type(right.artifact)("k", str(folder), str(broken), "d")
    outcome = worker.screen(Candidate({}, Launch(), artifact))
    assert outcome.status is Status.LAUNCH_ERROR
    assert "broken.so" in outcome.message


def test_misaligned_bases_are_tried_only_where_the_launch_allows_them(worker: Worker, folder: Path) -> None:
    body = "if ((uintptr_t)in0 % 16) return; " + kernels.CPU_SOFTMAX
    strict = kernels.build(body, COLS, folder, Launch(alignment=16))
    careless = kernels.build(body, COLS, folder, Launch(alignment=4))
    assert worker.screen(strict).status is Status.PASSED
    assert worker.screen(careless).status is Status.WRONG


def test_finals_pair_the_samples_and_check_the_whole_workload(
    worker: Worker, right: Candidate, folder: Path
) -> None:
    slower = kernels.build(kernels.CPU_SOFTMAX * 4, COLS, folder)
    finals = worker.finals([slower, right], budget_s=1.0)
    assert [entry.candidate for entry in finals.entries] == [slower, right]
    lengths = {len(entry.samples_us) for entry in finals.entries}
    assert lengths == {len(finals.baseline_us)} == {len(finals.ceiling_us)}
    assert min(lengths) >= 3
    slow, fast = (entry.outcome for entry in finals.entries)
    assert slow.time_us is not None
    assert fast.time_us is not None
    assert slow.time_us > 2 * fast.time_us
    assert fast.time_us == statistics.median(finals.entries[1].samples_us)
    errors = finals.entries[1].errors
    assert set(errors) == {"uniform", "normal", "spike", "special"}
    assert 0 < errors["normal"].baseline < 1e-6
    assert 0 < errors["normal"].candidate < 1e-6
    assert "torch" in finals.environment


def test_only_the_fastest_are_checked_whole_where_that_is_enough(
    worker: Worker, right: Candidate, folder: Path
) -> None:
    """A wrong one does not count, however fast."""
    fast_and_wrong = kernels.build("out0[0] = 1.0f;", COLS, folder)
    slower, slowest = (kernels.build(kernels.CPU_SOFTMAX * times, COLS, folder) for times in (6, 12))
    candidates = [slowest, right, fast_and_wrong, slower]
    finals = worker.finals(candidates, budget_s=0.5, enough=1)
    assert [e.outcome.status for e in finals.entries] == [*[Status.PASSED] * 2, Status.WRONG, Status.PASSED]
    assert [bool(entry.errors) for entry in finals.entries] == [False, True, False, False]
    assert [bool(entry.samples_us) for entry in finals.entries] == [True, True, False, True]


def test_a_finalist_that_is_wrong_beyond_the_screened_rows_is_caught(folder: Path) -> None:
    """8 MB are screened, so the last row of 24 MB is seen by the final check alone."""
    rows = 5998  # the last one is a uniform row, where each element is of about the same size
    late = kernels.CPU_SOFTMAX + f" if (rows == {rows}) out0[rows * COLS - 1] *= 1.0001f;"
    crash = kernels.CPU_SOFTMAX + f" if (rows == {rows}) std::abort();"
    with Worker(job(shape=(rows, COLS))) as worker:
        worker.start()
        candidates = [kernels.build(body, COLS, folder) for body in (late, kernels.CPU_SOFTMAX, crash)]
        assert worker.screen(candidates[0]).status is Status.PASSED
        finals = worker.finals(candidates, budget_s=0.2)
    assert [entry.outcome.status for entry in finals.entries] == [Status.WRONG, Status.PASSED, Status.CRASHED]
    assert [bool(entry.samples_us) for entry in finals.entries] == [False, True, False]


def test_a_finalist_that_breaks_the_race_is_found_and_the_others_race_on(
    worker: Worker, right: Candidate, folder: Path
) -> None:
    tired = "static int calls = 0; if (++calls > 3) std::abort();" + kernels.CPU_SOFTMAX
    finals = worker.finals([kernels.build(tired, COLS, folder), right], budget_s=0.5)
    assert [entry.outcome.status for entry in finals.entries] == [Status.CRASHED, Status.PASSED]
    assert finals.baseline_us


def test_finals_without_a_finalist_still_measure_pytorch(worker: Worker) -> None:
    finals = worker.finals([], budget_s=0.1)
    assert not finals.entries
    assert len(finals.baseline_us) == len(finals.ceiling_us) >= 3


def test_what_is_wrong_with_the_job_is_said_as_such(tmp_path: Path) -> None:
    with (
        Worker(job(memory_limit_bytes=1 << 19)) as worker,
        pytest.raises(BadShape, match=r"0\.0 GB may be used"),
    ):
        worker.start()
    ops = tmp_path / "mine.py"
    ops.write_text("import ksearch\n@ksearch.op\ndef mine(x):\n    return x * 2\n")
    mine = job(f"{ops}:mine")
    ops.unlink()
    with Worker(mine) as worker, pytest.raises(UserFileError):
        worker.start()


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksearch.evaluate.worker._TARGET", "tests.evaluate.answers:open_broken")
    with Worker(job()) as worker, pytest.raises(WorkerError, match="cannot start"):
        worker.start()

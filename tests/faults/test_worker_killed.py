"""SIGKILL to the worker, at any point: by a person, a batch system, a machine without memory."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from ksearch import backends
from ksearch.errors import WorkerError
from ksearch.evaluate.messages import Finals, Job, Nearby
from ksearch.evaluate.worker import Worker
from ksearch.launch import Launch
from ksearch.types import Artifact, Candidate, Status, Workload
from tests.evaluate import kernels
from tests.evaluate.test_worker import job
from tests.faults import played
from tests.faults.told import Told

CANDIDATE = Candidate({"step": 1}, Launch(), Artifact("k", "f", "b", "d"))


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("ksearch.evaluate.worker._TARGET", "tests.faults.played:open_session")
    monkeypatch.setenv("FAULTS_LOG", str(tmp_path / "log"))
    return tmp_path / "mark"


def open_worker() -> Worker:
    return Worker(Job("none", Workload("twice", (4, 8)), backends.get("cpu").target()), timeout_s=5.0)


def asked(mark: Path) -> list[str]:
    return [json.loads(text)[0] for text in (mark.parent / "log").read_text().splitlines()]


@pytest.mark.parametrize("verb", ["warm", "open", "start", "screen", "race", "verify", "nearby"])
def test_killed_once_it_costs_nobody_anything(
    verb: str, mark: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setenv("FAULTS_DO", f"{verb} kill {mark}")
    with open_worker() as worker:
        ready = worker.start()
        outcome = worker.screen(CANDIDATE)
        finals = worker.finals([CANDIDATE], budget_s=1.0)
        near = worker.nearby(CANDIDATE, 8, 1.0)
    assert mark.exists(), "nobody was killed"
    assert ready.baseline_us == played.BASELINE_US
    assert (outcome.status, outcome.time_us) == (Status.PASSED, played.time_us(CANDIDATE))
    assert isinstance(finals, Finals)
    assert [entry.outcome.status for entry in finals.entries] == [Status.PASSED]
    assert near == Nearby(8, 1.0)
    assert asked(mark).count(verb) >= (1 if verb == "warm" else 2), "a spare is not missed"
    told(f"worker killed with SIGKILL in `{verb}`", "asked again, in a new process")


def test_killed_twice_over_the_same_candidate_it_is_that_candidates(
    mark: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setenv("FAULTS_DO", "screen kill")
    with open_worker() as worker:
        worker.start()
        outcome = worker.screen(CANDIDATE)
        assert (outcome.status, outcome.message) == (Status.CRASHED, "SIGKILL")
        assert worker.nearby(CANDIDATE, 8, 1.0) == Nearby(8, 1.0)
    assert asked(mark).count("screen") == 2
    told("worker killed over each try of one candidate", outcome)


def test_killed_whenever_it_opens_is_said_after_three_attempts(
    mark: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setenv("FAULTS_DO", "open kill")
    with open_worker() as worker, pytest.raises(WorkerError, match="cannot be started: SIGKILL") as caught:
        worker.start()
    assert asked(mark).count("open") == 3
    told("worker killed whenever it starts", caught.value)


def test_the_real_one_killed_at_work(tmp_path: Path, told: Told) -> None:
    """The kernel takes 0.1 s a call, so that the signal comes in the middle."""
    slow = 'extern "C" int usleep(unsigned);\n' + kernels.CPU_PROLOGUE
    candidate = kernels.build("usleep(100000); " + kernels.CPU_SOFTMAX, 200, tmp_path, prologue=slow)
    with Worker(job(shape=(16, 200)), timeout_s=10.0) as worker:
        worker.start()
        child = worker._child
        assert child is not None
        timer = threading.Timer(0.3, lambda: os.kill(child.pid, signal.SIGKILL))
        timer.start()
        outcome = worker.screen(candidate)
        timer.join()
        assert worker.respawns == 1
    assert outcome.status is Status.PASSED, outcome
    told("the real worker killed with SIGKILL at work", "asked again, in a new process")

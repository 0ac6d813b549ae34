"""The device goes away, or another process has taken its memory: the study says so, and keeps what it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ksearch import env, study_file, tuner
from ksearch.errors import BadShape, WorkerError
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.study_run import State, StudyReport, run
from ksearch.types import Target, Workload
from tests.faults import tuning
from tests.faults.test_tuner_killed import rows
from tests.faults.told import Told


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What the played session is to do."""
    tuning.write_op(tmp_path)
    monkeypatch.setattr("ksearch.evaluate.worker._TARGET", "tests.faults.played:open_session")
    return lambda deed: monkeypatch.setenv("FAULTS_DO", deed)


def tune(folder: Path) -> tuner.Report:
    where = f"{folder / 'mine.py'}:twice"
    return tuner.tune(where, tuning.SHAPE, device="cpu", trials=tuning.CONFIGS, early_stop=False, jobs=1)


def test_gone_in_the_middle_it_is_said_and_what_was_measured_stays(
    do: Callable[[str], None], tmp_path: Path, told: Told
) -> None:
    do(f"screen lose {tmp_path / 'mark'}")
    with pytest.raises(
        WorkerError, match="cannot be started: RuntimeError: CUDA error: no CUDA-cap"
    ) as caught:
        tune(tmp_path)
    (kept,) = rows(env.database_path()).values()
    assert kept[1] == "crashed"
    told("GPU gone in the middle of a search", caught.value)
    (tmp_path / "mark").unlink()
    do("")
    report = tune(tmp_path)
    assert (report.trials, report.failures) == (tuning.CONFIGS, {"crashed": 1}), "the device is back"


def test_a_device_that_is_not_there_is_said_by_the_real_session(
    monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setattr("ksearch.evaluate.worker._ATTEMPTS", 1)  # each imports torch
    target = Target("cuda", "sm_90", "a GPU that was here", index=99)
    with (
        Worker(Job("softmax", Workload("softmax", (4, 8)), target)) as worker,
        pytest.raises(WorkerError, match="the worker for a GPU that was here cannot be started: ") as caught,
    ):
        worker.start()
    assert "\n" not in str(caught.value)
    told("GPU gone before a search, the real worker", caught.value)


def study(folder: Path) -> StudyReport:
    path = folder / "s.toml"
    path.write_text('[[workload]]\nop = "mine.py:twice"\nshapes = ["4x8", "8x8"]\n')
    return run(
        study_file.read(path), device="cpu", trials=2, search=lambda *a, **k: tuner.tune(*a, jobs=1, **k)
    )


def test_memory_that_another_process_has_taken_fails_the_workload_and_not_the_study(
    do: Callable[[str], None], tmp_path: Path, told: Told
) -> None:
    do(f"open full {tmp_path / 'mark'}")
    report = study(tmp_path)
    assert [result.state for result in report.results] == [State.FAILED, State.PYTORCH]
    assert "does not fit into the device's memory" in report.results[0].reason
    told("GPU memory taken by another process", report.results[0].reason)
    do("open full")
    with pytest.raises(BadShape, match="out of memory"):
        tune(tmp_path)


def test_a_study_without_a_device_says_so_of_each_workload(do: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    do(f"screen lose {tmp_path / 'mark'}")
    report = study(tmp_path)
    assert [result.state for result in report.results] == [State.FAILED] * 2
    assert all("no CUDA-capable device" in result.reason for result in report.results)
    assert not report.is_complete

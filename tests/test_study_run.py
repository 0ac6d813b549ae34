"""Studies: with a search that is played, and for real on the CPU with a few tiny workloads."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ksearch import env, pace, study_file, tuner
from ksearch.errors import DeviceBusy, NoSuchDevice, StoreError, WorkerError
from ksearch.plan import make_plan
from ksearch.store import Store
from ksearch.study import StudyFile
from ksearch.study_run import State, StudyProgress, StudyReport, run
from ksearch.tuner import Progress, Report
from ksearch.types import Winner

ROOT = Path(__file__).parents[1]
THREE = '[[workload]]\nop = "softmax"\nshapes = ["4x8", "4x16", "4x32"]\n'


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], StudyFile]:
    def read(text: str) -> StudyFile:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return study_file.read(path)

    return read


Read = Callable[[str], StudyFile]


class Played:
    """Stands in for `tuner.tune`: promotes a baseline of 5 trials, or raises what `fails` has for a shape."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        self.fails: dict[tuple[int, ...], BaseException] = {}
        self.facts: dict[tuple[int, ...], dict[str, Any]] = {}
        self.stops: set[tuple[int, ...]] = set()

    def __call__(self, op: str, shape: tuple[int, ...], **how: Any) -> Report:
        self.asked.append((shape, how))
        how["progress"](Progress(1, 5, {}, 2.0, 3.0, 1.0, 4.0, "search"))
        if shape in self.stops:
            signal.raise_signal(signal.SIGINT)
            assert how["stop"].is_set()
        if shape in self.fails:
            raise self.fails[shape]
        plan = make_plan(op, shape, how["dtype"], how["device"], how["options"], how["policy"])
        facts = {"study": plan.study_name(), "trials": 5, "failures": {}, **self.facts.get(shape, {})}
        winner = Winner(plan.workload, plan.target, None, None, None, 2.0, 2.0, 1.0, facts)
        with Store.open(how["db"]) as store:
            store.promote(winner, source=None, binary=None, environment={})
        return Report(winner, facts["trials"], facts["failures"], 0.5, str(how["db"]), {"wrong": "zeros"})

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [shape for shape, _ in self.asked]


@pytest.fixture
def search() -> Played:
    return Played()


def on_cpu(study: StudyFile, search: Callable[..., Report], **more: Any) -> StudyReport:
    return run(study, device="cpu", search=search, **more)


def states(report: StudyReport) -> list[str]:
    return [str(result.state) for result in report.results]


# ---- what is asked of the search ----------------------------------------------------------------------


def test_every_workload_is_searched_in_the_order_of_the_file(
    read: Read, search: Played, tmp_path: Path
) -> None:
    study = read(f'[study]\ntrials = 9\n{THREE}[[workload]]\nop = "gone"\nshape = [1]\nneeds = "more"')
    report = on_cpu(study, search, db=tmp_path / "own.db")
    assert search.shapes == [(4, 8), (4, 16), (4, 32)]
    how = search.asked[0][1]
    assert (how["trials"], how["budget_s"], how["device"], how["dtype"]) == (9, None, "cpu", "float32")
    assert (how["db"], how["options"]) == (tmp_path / "own.db", {})
    assert states(report) == ["pytorch"] * 3 + ["needs"]
    assert report.results[3].reason == "needs more"
    assert (report.study, report.db, report.is_complete) == ("mine", str(tmp_path / "own.db"), True)
    assert report.results[0].trials == 5


def test_the_policies_of_a_linear_layer_are_workloads_of_their_own(read: Read, search: Played) -> None:
    study = read('[[workload]]\nop = "linear"\nshape = "4x16x8"\npolicies = ["strict", "tf32"]')
    first, again = on_cpu(study, search), on_cpu(study, search)
    assert [(shape, how["policy"]) for shape, how in search.asked] == [
        ((4, 16, 8), "strict"),
        ((4, 16, 8), "tf32"),
    ]
    assert states(first) == ["pytorch"] * 2
    assert states(again) == ["had"] * 2
    assert [result.winner.workload.policy for result in again.results if result.winner] == ["strict", "tf32"]


def test_what_is_asked_for_comes_before_the_file(read: Read, search: Played) -> None:
    study = read(f'[study]\ntrials = 9\nbudget_s = 1000\ndevice = "cuda:77"\n{THREE}')
    on_cpu(study, search, trials=3, budget_s=60.0)
    assert {how["trials"] for _, how in search.asked} == {3}
    assert [how["budget_s"] for _, how in search.asked] == pytest.approx([20.0, 30.0, 60.0], abs=2)
    with pytest.raises(NoSuchDevice):
        run(study, search=search)


def test_the_time_of_the_study_is_shared_by_weight_and_what_is_over_is_not_begun(
    read: Read, search: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    def slow(*arguments: Any, **how: Any) -> Report:
        nonlocal now_s
        now_s += 40.0
        return search(*arguments, **how)

    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now_s))
    study = read(f"[study]\nbudget_s = 84\n{THREE}weight = 3.0\n{THREE.replace('4x', '5x')}")
    report = on_cpu(study, slow)
    assert [how["budget_s"] for _, how in search.asked] == [84 * 3 / 12, 44 * 3 / 9]
    assert states(report) == ["pytorch"] * 2 + ["left"] * 4
    assert {result.reason for result in report.results[2:]} == {"the time of the study is spent"}
    assert not report.is_complete


# ---- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [WorkerError("no worker\nat all"), ZeroDivisionError("a bug")])
def test_a_workload_that_fails_is_recorded_and_the_study_goes_on(
    read: Read, search: Played, error: Exception
) -> None:
    search.fails[4, 16] = error
    report = on_cpu(read(THREE), search)
    assert states(report) == ["pytorch", "failed", "pytorch"]
    kind = "ZeroDivisionError: a bug" if isinstance(error, ZeroDivisionError) else "no worker at all"
    assert report.results[1].reason == kind
    assert not report.is_complete


def test_a_workload_too_large_for_the_memory_fails_without_a_search(read: Read, search: Played) -> None:
    report = on_cpu(read('[[workload]]\nop = "softmax"\nshapes = ["999999x999999", "4x8"]'), search)
    assert states(report) == ["failed", "pytorch"]
    assert "choose fewer rows" in report.results[0].reason
    assert search.shapes == [(4, 8)]


def test_where_all_candidates_failed_there_is_no_result(read: Read, search: Played) -> None:
    search.facts[4, 8] = {"failures": {"wrong": 5}}
    search.facts[4, 16] = {"trials": 0}
    for _ in range(2):
        report = on_cpu(read(THREE), search)
        assert report.results[0].reason == "all 5 candidates failed; wrong: zeros"
        assert report.results[1].reason == "the time was up before a candidate"
    assert states(report) == ["failed", "failed", "had"], "and another run tries again"


@pytest.mark.parametrize("error", [DeviceBusy("another tuner"), StoreError("the disk is full")])
def test_what_is_wrong_with_the_machine_ends_the_study(read: Read, search: Played, error: Exception) -> None:
    search.fails[4, 16] = error
    report = on_cpu(read(THREE), search)
    assert states(report) == ["pytorch", "failed", "left"]
    assert report.results[2].reason == str(error)
    search.fails[4, 8] = error
    with pytest.raises(type(error), match=str(error)):
        on_cpu(read(THREE), search, again=True)


# ---- a second run -------------------------------------------------------------------------------------


def test_what_has_a_winner_of_the_same_search_is_not_tuned_again(read: Read, search: Played) -> None:
    search.fails[4, 16] = WorkerError("once")
    on_cpu(read(THREE), search)
    search.fails.clear()
    search.asked.clear()
    report = on_cpu(read(THREE), search, budget_s=60.0)
    assert search.shapes == [(4, 16)]
    assert states(report) == ["had", "pytorch", "had"]
    assert search.asked[0][1]["budget_s"] == pytest.approx(60, abs=1), "all of the time is for what is left"
    had = report.results[0]
    assert had.winner is not None
    assert (had.winner.time_us, had.trials, had.report) == (2.0, 5, None)
    on_cpu(read(THREE), search, again=True)
    assert len(search.asked) == 4


@pytest.mark.parametrize(
    "facts", [{"study": "another space"}, {"ended": "interrupted"}], ids=["edited", "interrupted"]
)
def test_a_winner_of_another_or_an_unfinished_search_is_not_the_end(
    read: Read, search: Played, facts: dict[str, Any]
) -> None:
    search.facts[4, 16] = facts
    on_cpu(read(THREE), search)
    search.asked.clear()
    assert states(on_cpu(read(THREE), search)) == ["had", "pytorch", "had"]
    assert search.shapes == [(4, 16)]


# ---- Ctrl-C -------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_running_search_and_begins_no_other(read: Read, search: Played) -> None:
    on_cpu(read(THREE.replace('"4x8", "4x16", ', "")), search)
    search.stops.add((4, 8))
    report = on_cpu(read(THREE), search)
    assert states(report) == ["pytorch", "left", "had"]
    assert report.results[1].reason == "interrupted"
    assert report.interrupted


def test_ctrl_c_before_anything_was_found_keeps_the_workloads_before_it(read: Read, search: Played) -> None:
    search.stops.add((4, 16))
    search.fails[4, 16] = KeyboardInterrupt()  # as the tuner does without a best
    report = on_cpu(read(THREE), search)
    assert states(report) == ["pytorch", "left", "left"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait_for_the_search(read: Read, search: Played) -> None:
    def deaf(*arguments: Any, **how: Any) -> Report:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    assert states(on_cpu(read(THREE), deaf)) == ["left"] * 3


def test_another_thread_hears_no_signal_and_runs_all_the_same(read: Read, search: Played) -> None:
    reports: list[StudyReport] = []
    thread = threading.Thread(target=lambda: reports.append(on_cpu(read(THREE), search)))
    thread.start()
    thread.join(60)
    assert states(reports[0]) == ["pytorch"] * 3


# ---- progress -----------------------------------------------------------------------------------------


def test_every_step_is_told_and_every_workload_is_finished_once(read: Read, search: Played) -> None:
    seen: list[StudyProgress] = []
    report = on_cpu(read(THREE), search, progress=seen.append)
    assert [step.finished for step in seen if step.finished] == list(report.results)
    running = [step for step in seen if step.entry is not None]
    assert [(step.done, step.total, step.search is None) for step in running] == [
        (done, 3, first) for done in range(3) for first in (True, False)
    ]
    assert running[0].left_s is None
    assert running[3].left_s is not None


# ---- for real -----------------------------------------------------------------------------------------

OPS = """\
import ksearch, torch

@ksearch.op
def swish(x, *, beta=1.0):
    return x * torch.sigmoid(beta * x)

@ksearch.op
def backwards(x):
    return x.flip(-1)
"""
REAL = """\
[study]
trials = 3

[[workload]]
op = "softmax"
shape = [32, 128]

[[workload]]
op = "my_ops.py:backwards"
shape = [32, 128]

[[workload]]
op = "my_ops.py:swish"
shape = [16, 64]
dtype = "bfloat16"
options = { beta = 1.5 }
"""


def trials_of(shape: str, db: Path | None = None) -> int:
    query = "SELECT count(*) FROM evaluations WHERE study LIKE ?"
    try:
        with closing(sqlite3.connect(db or env.database_path())) as connection:
            return int(connection.execute(query, [f"% {shape} %"]).fetchone()[0])
    except sqlite3.Error:
        return 0


def test_a_study_tunes_for_real_and_a_second_run_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "_FINAL_S", 0.3)
    (tmp_path / "my_ops.py").write_text(OPS)
    (tmp_path / "real.toml").write_text(REAL)
    study = study_file.read(tmp_path / "real.toml")
    report = run(study, device="cpu")
    first, failed, last = report.results
    for result in (first, last):
        assert result.state in (State.TUNED, State.PYTORCH)
        assert result.trials == 3
        assert result.winner is not None
        assert result.winner.time_us > 0
    assert failed.state == State.FAILED
    assert "flip" in failed.reason
    assert (trials_of("32x128"), trials_of("16x64")) == (3, 3)

    again = run(study, device="cpu")
    assert states(again) == ["had", "failed", "had"]
    assert again.results[0].winner == replace(first.winner, created=again.results[0].winner.created)
    assert trials_of("32x128") == 3


def test_a_real_ctrl_c_keeps_what_was_measured_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.toml"
    path.write_text('[[workload]]\nop = "softmax"\nshapes = ["32x128", "16x64"]\n')
    command = [sys.executable, "-m", "ksearch", "tune", "--study", str(path), "--device", "cpu", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--trials", "400"], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    ) as process:
        deadline = time.monotonic() + 90
        while trials_of("32x128") < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    content = json.loads(out)
    assert (content["complete"], content["interrupted"]) == (False, True)
    stopped, left = content["workloads"]
    assert stopped["state"] in ("tuned", "pytorch")
    assert 3 <= stopped["trials"] == trials_of("32x128") < 400
    assert (left["state"], left["reason"], left["trials"]) == ("left", "interrupted", 0)

    monkeypatch.setattr(tuner, "_FINAL_S", 0.3)
    trials = stopped["trials"] + 2
    first, second = run(study_file.read(path), device="cpu", trials=trials).results
    assert stopped["trials"] <= trials_of("32x128") <= trials
    assert first.winner is not None
    assert first.state != "had", "what was interrupted is searched further"
    assert second.state in (State.TUNED, State.PYTORCH)
    assert second.trials == trials_of("16x64") == trials

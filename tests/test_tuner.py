"""The whole loop for real, on the CPU and on small shapes: tens of candidates, compiled, checked, timed."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from ksearch import env, operators, runtime, stopping, tuner
from ksearch.errors import BadShape, DeviceBusy, RenderError, StoreError, UnknownOp, UsageError
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.launch import Launch
from ksearch.operators.program import as_tuple
from ksearch.plan import device_lock, make_plan
from ksearch.store import Store
from ksearch.tuner import Progress, Report, tune
from ksearch.types import Candidate, Outcome, Status, Winner, Workload, digest

ROOT = Path(__file__).parents[1]
SHAPE = (32, 128)


@pytest.fixture(autouse=True)
def _short_finals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_FINAL_S", 0.3)


@pytest.fixture
def screened(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """The candidates that were really checked and timed."""
    seen: list[Candidate] = []
    screen = Worker.screen

    def watched(self: Worker, candidate: Candidate, incumbent_us: float | None = None) -> Outcome:
        seen.append(candidate)
        return screen(self, candidate, incumbent_us)

    monkeypatch.setattr(Worker, "screen", watched)
    return seen


def on_cpu(op: str = "softmax", shape: tuple[int, ...] = SHAPE, **more: Any) -> Report:
    return tune(op, shape, device="cpu", **more)


def evaluations(db: Path | None = None) -> list[tuple[str, dict[str, Any], str, str]]:
    """Study, config, status and message of all that was recorded."""
    with closing(sqlite3.connect(db or env.database_path())) as connection:
        rows = connection.execute("SELECT study, config, status, message FROM evaluations").fetchall()
    return [(study, json.loads(config), status, message) for study, config, status, message in rows]


# ---- end to end ---------------------------------------------------------------------------------------


def test_what_was_tuned_is_recorded_and_runs(screened: list[Candidate], tmp_path: Path) -> None:
    seen: list[Progress] = []
    db = tmp_path / "own.db"
    report = on_cpu(trials=8, db=db, progress=seen.append)
    assert (report.trials, report.failures, report.db) == (8, {}, str(db))
    assert len({json.dumps(config, sort_keys=True) for _, config, _, _ in evaluations(db)}) == 8
    assert {status for _, _, status, _ in evaluations(db)} == {"passed"}
    assert 1 <= len(screened) <= 8
    winner = report.winner
    assert (winner.workload.shape, winner.target.backend) == (SHAPE, "cpu")
    assert winner.time_us > 0 < winner.ceiling_us
    assert winner.status == ("winner" if winner.certificate["speedup_ci"][0] > 1 else "baseline")
    assert winner.certificate["trials"] == 8
    assert report.elapsed_s > sum(report.phases_s.values()) * 0.9
    assert {"start", "final"} <= set(report.phases_s)
    with Store.open(db) as store:
        found = store.find(winner.workload, winner.target)
        assert found is not None
        assert found.config == winner.config
    # what the progress line was told
    assert [p.trials_done for p in seen if p.phase == "search"] == list(range(1, 9))
    assert seen[-1].phase == "final"
    assert seen[-1].best_us is not None
    assert seen[-1].trials_total == 8
    assert (seen[0].baseline_us or 0) > 0 < (seen[0].ceiling_us or 0)
    # what optuna-dashboard would open
    storage = optuna.storages.RDBStorage(f"sqlite:///{db}")
    (summary,) = optuna.get_all_study_summaries(storage)
    storage.engine.dispose()
    assert (summary.study_name, summary.n_trials) == (winner.certificate["study"], 8)
    # and what a user does with it
    softmax = runtime.load("softmax", shape=SHAPE, device="cpu", db=db)
    x = torch.randn(SHAPE)
    assert torch.allclose(softmax(x), torch.softmax(x, -1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("op", "shape"), [("relu", (1,)), ("add_layernorm", (1, 1))])
def test_one_element_is_a_shape_like_any_other(op: str, shape: tuple[int, ...], device: str) -> None:
    """Of which the variance is 0."""
    report = tune(op, shape, device=device, trials=3)
    assert 1 <= report.trials <= 3
    assert report.failures == {}
    handle = runtime.load(op, shape, device=device)
    assert handle.match is runtime.Match.EXACT
    known = operators.get(op)
    tensors = [torch.randn(size, device=device) for size in known.input_shapes(shape)]
    for ours, theirs in zip(as_tuple(handle(*tensors)), as_tuple(known.reference(*tensors)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compilers_rest_while_the_cpu_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[CompilePool] = []
    pending: list[int] = []
    start, screen = CompilePool.__init__, Worker.screen

    def opened(self: CompilePool, *arguments: Any, **more: Any) -> None:
        start(self, *arguments, **more)
        pools.append(self)

    def watched(self: Worker, *arguments: Any) -> Outcome:
        pending.append(pools[0].pending)
        return screen(self, *arguments)

    monkeypatch.setattr(CompilePool, "__init__", opened)
    monkeypatch.setattr(Worker, "screen", watched)
    on_cpu(trials=10, jobs=2)
    assert len(pending) >= 6
    assert set(pending) == {0}


# ---- going on -----------------------------------------------------------------------------------------


def test_a_second_run_takes_over_the_first_and_repeats_nothing(screened: list[Candidate]) -> None:
    on_cpu(trials=6, seed=1)
    first = evaluations()
    count = len(screened)
    report = on_cpu(trials=9, seed=2)
    assert report.trials == 9
    assert len(screened) - count <= 3
    assert len(evaluations()) == 9
    assert evaluations()[:6] == first
    assert len({json.dumps(config, sort_keys=True) for _, config, _, _ in evaluations()}) == 9
    assert len({study for study, *_ in evaluations()}) == 1
    with closing(sqlite3.connect(env.database_path())) as connection:
        numbers = [number for (number,) in connection.execute("SELECT number FROM evaluations")]
    assert len(set(numbers)) == 9
    count = len(screened)
    assert on_cpu(trials=9).trials == 9
    assert len(screened) == count, "a search that is complete is only decided again"


def test_winners_of_other_shapes_are_tried_first() -> None:
    plan = make_plan("softmax", SHAPE, "float32", "cpu", {})
    config = list(plan.space)[-1]
    assert config not in plan.guesses
    other = Workload("softmax", (64, 128), program=plan.workload.program)
    winner = Winner(other, plan.target, config, Launch(), digest(b"x"), 1.0, 2.0, 0.5)
    with Store.open(env.database_path()) as store:
        store.promote(winner, source="//", binary=b"x", environment={})
    on_cpu(trials=len(plan.guesses) + 1)
    assert config in [config for _, config, _, _ in evaluations()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was recorded"
        time.sleep(0.05)


def recorded() -> int:
    try:
        return len(evaluations())
    except sqlite3.Error:
        return 0


def test_ctrl_c_keeps_what_was_measured_and_the_same_command_goes_on(screened: list[Candidate]) -> None:
    arguments = ["tune", "softmax", "--shape", "64x128", "--device", "cpu", "--json"]
    command = [sys.executable, "-m", "ksearch", *arguments, "--trials", "400", "--budget", "200"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(lambda: recorded() >= 3, process)
        with pytest.raises(DeviceBusy, match="another ksearch is tuning on cpu"):
            on_cpu(trials=1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    row = json.loads(out)
    assert {
        *("op", "shape", "dtype", "device", "status", "time_us", "baseline_us", "speedup", "ceiling_us"),
        *("percent_of_ceiling", "config", "trials", "failures", "elapsed_s", "db"),
    } <= set(row)
    assert row["status"] in ("winner", "baseline")
    assert 3 <= row["trials"] == recorded() < 400
    assert row["ended"] == "interrupted"
    plan = make_plan("softmax", (64, 128), "float32", "cpu", {})
    with Store.open(env.database_path()) as store:
        winner = store.find(plan.workload, plan.target)
    assert winner is not None
    assert winner.config == row["config"]
    # and on
    assert on_cpu(shape=(64, 128), trials=row["trials"] + 2).trials == row["trials"] + 2
    assert len(screened) <= 2
    assert recorded() == row["trials"] + 2


def test_ctrl_c_before_anything_was_measured_says_so() -> None:
    command = [sys.executable, "-m", "ksearch", "tune", "softmax", "--shape", "64x128", "--device", "cpu"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for((env.cache_dir() / "locks/cpu.lock").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.strip().endswith("interrupted, and nothing was kept")


# ---- own templates ------------------------------------------------------------------------------------

OWN = """\
import ksearch

@ksearch.op
class Twice(ksearch.TemplateOp):
    name = "twice"
    templates = {"cpu": "twice.cpp"}

    def reference(self, x):
        return x * 2

    def space(self, workload, target):
        return {"step": [1, 2, 4]}

    def launch(self, config, workload, target):
        return ksearch.Launch(threads=1)
"""
TWICE = """\
#include <cstdint>
#include <unistd.h>
extern "C" void {{ entry }}(const float* x, float* out, int64_t rows, int32_t threads) {
    // {{ step }} at a time
    for (int64_t i = 0; i < rows * {{ cols }}; ++i) {
        out[i] = x[i] * 2;
    }
}
"""
GUESSES = """\
    def guesses(self, workload, target):
        return [{"step": [1]}]"""


def own(folder: Path, old: str = "", new: str = "") -> str:
    assert old in TWICE + OWN
    (folder / "mine.py").write_text(OWN.replace(old, new) if old else OWN)
    (folder / "twice.cpp").write_text(TWICE.replace(old, new) if old else TWICE)
    return f"{folder / 'mine.py'}:twice"


def test_an_own_template_is_tuned_and_equal_machine_code_measured_once(
    tmp_path: Path, screened: list[Candidate]
) -> None:
    """`step` stands in a comment alone, so all three configs are one binary."""
    report = on_cpu(own(tmp_path))
    assert (report.trials, report.failures, len(screened)) == (3, {}, 1)
    assert report.ended == "space exhausted"
    assert [status for _, _, status, _ in evaluations()] == ["passed"] * 3


def test_a_value_that_is_listed_twice_is_tried_once(tmp_path: Path) -> None:
    assert on_cpu(own(tmp_path, "[1, 2, 4]", "[1, 2, 2]")).trials == 2


def test_one_that_does_not_render_names_variable_and_line(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=r"twice\.cpp:4: 'stride' is undefined"):
        on_cpu(own(tmp_path, "{{ step }}", "{{ stride }}"))


def test_one_that_does_not_compile_is_told_at_its_line_and_pytorch_is_the_record(tmp_path: Path) -> None:
    report = on_cpu(own(tmp_path, "x[i] * 2;", "y[i] * 2;"))
    assert report.failures == {"compile_error": 3}
    assert report.first_failures["compile_error"].startswith("twice.cpp:6: ")
    assert "y" in report.first_failures["compile_error"]
    assert report.winner.status == "baseline"
    assert {(status, message[:12]) for _, _, status, message in evaluations()} == {
        ("compile_error", "twice.cpp:6:")
    }


@pytest.mark.parametrize(
    ("new", "status"),
    [("out[i] = 0;", "wrong"), ("*(volatile int*)nullptr = 1;", "crashed")],
    ids=["zeros", "crash"],
)
def test_a_wrong_one_is_not_promoted(tmp_path: Path, new: str, status: str) -> None:
    report = on_cpu(own(tmp_path, "out[i] = x[i] * 2;", new), trials=1)
    assert report.failures == {status: 1}
    assert report.first_failures[status]
    assert (report.winner.status, report.winner.config) == ("baseline", None)


def test_a_slow_one_does_not_replace_pytorch(tmp_path: Path) -> None:
    report = on_cpu(own(tmp_path, "    // {{ step }} at a time", "    usleep(20000);"), trials=1)
    assert report.failures == {}
    assert report.winner.status == "baseline"
    assert report.winner.certificate["speedup_ci"][1] < 1
    assert report.winner.certificate["fastest_config"] is not None
    loaded = runtime.load(str(tmp_path / "mine.py") + ":twice", shape=SHAPE, device="cpu")
    assert torch.equal(loaded(torch.ones(SHAPE)), torch.full(SHAPE, 2.0))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return {", "return {'a': 1 / 0, ", r"mine\.py:\d+: ZeroDivisionError"),
        ("return {", "return 3, {", "Twice.space gives"),
        ("[1, 2, 4]", "[1, 2.5]", "2.5"),
        ("[1, 2, 4]", "[]", "no config"),
        ("ksearch.Launch(threads=1)", "None", "Twice.launch gives None"),
        ("    def launch", f"{GUESSES}\n\n    def launch", r"Twice.guesses gives \[{'step'"),
    ],
)
def test_mistakes_in_the_class_are_told_as_the_users(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        on_cpu(own(tmp_path, old, new), trials=1)
    assert "\n" not in str(caught.value)


# ---- limits -------------------------------------------------------------------------------------------


def test_a_budget_of_seconds_ends_the_search() -> None:
    """A round of candidates may be under way when it ends; the space of thousands is not covered."""
    report = on_cpu(shape=(256, 1024), budget_s=8.0, jobs=1)
    assert report.trials >= 1
    assert 6.0 < report.elapsed_s < 14.0
    assert report.ended == "budget"


def test_a_search_that_gains_nothing_more_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "screen", lambda *_: Outcome(Status.PASSED, time_us=100.0))
    monkeypatch.setattr(stopping, "_LEAST", 6)
    monkeypatch.setattr(stopping, "_FEWEST", 4)
    monkeypatch.setattr(stopping, "_LEAST_AT_CEILING", 1)
    report = on_cpu("sigmoid", trials=12)
    assert report.ended == "no more to gain"
    assert report.winner.certificate["ended"] == "no more to gain"
    assert 6 <= report.trials < 12
    report = on_cpu("sigmoid", trials=12, early_stop=False)
    assert (report.ended, report.trials) == ("trials", 12)


def test_what_cannot_be_done_is_refused_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UnknownOp, match="no op 'sofmax'; did you mean softmax"):
        on_cpu("sofmax")
    with pytest.raises(BadShape, match=r"4000000x1000000 in float32 needs 48,000\.\d GB .*has \d+\.\d GB"):
        on_cpu(shape=(4_000_000, 1_000_000))
    with pytest.raises(UsageError, match="no sampler 'grid'"):
        on_cpu(sampler="grid")
    plan = make_plan("softmax", SHAPE, "float32", "cpu", {})
    with device_lock(plan.target), pytest.raises(DeviceBusy):
        on_cpu()
    assert time.monotonic() - began < 10


# ---- a full disk --------------------------------------------------------------------------------------


def test_a_database_that_cannot_grow_is_one_error_and_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cpu("sigmoid", trials=2)
    record = Store.record
    count = 0

    def filling(self: Store, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            with self._reader.connect() as connection:
                pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        record(self, *arguments)

    monkeypatch.setattr(Store, "record", filling)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        on_cpu(trials=40)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(Store, "record", record)
    kept = len(evaluations())
    assert kept >= 2 + 2
    assert on_cpu(trials=kept - 2 + 1).trials == kept - 2 + 1, "and it goes on once there is space"


@pytest.mark.parametrize("trials", [3, 60], ids=["in the tables of Optuna", "while recording"])
def test_a_full_disk_is_one_line_of_the_program(tmp_path: Path, trials: int) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=300k tmpfs {small}"
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount], check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    arguments = "-m ksearch tune softmax --shape 32x128 --device cpu --no-progress"
    command = f"{mount} && {sys.executable} {arguments} --trials {trials} --db {small}/k.db"
    done = subprocess.run([*unshare, command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the disk is full" in done.stderr

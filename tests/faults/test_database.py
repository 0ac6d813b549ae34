"""What becomes of the database: locked, full, damaged, shared. Nothing that was recorded is lost silently."""

from __future__ import annotations

import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ksearch.errors import KsearchError, StoreError
from ksearch.evaluate.process import Child
from ksearch.runtime import lookup
from ksearch.store import Store
from ksearch.types import Outcome, Status, Winner, Workload
from tests.faults import tuning
from tests.faults.conftest import ROOT
from tests.faults.test_tuner_killed import measured, optuna_trials, rows, winners
from tests.faults.told import Told
from tests.faults.tuning import Forks, Run
from tests.store.test_opening import PYTORCH_WON, TARGET, WORKLOAD, fill


def read_all(path: Path) -> int:
    """Everything that a user could ask the file for."""
    with Store.open(path, readonly=True) as store:
        found = len(store.winners()) + len(store.evaluations(WORKLOAD, TARGET)) + len(list(store.records()))
        return found + len(store.history(WORKLOAD, TARGET))


@pytest.mark.parametrize("seed", range(12))
def test_bytes_that_were_changed_are_noticed_or_harmless(seed: int, tmp_path: Path, told: Told) -> None:
    """A page of another file's bytes, wherever it falls: an answer, or one StoreError that names the file."""
    path = tmp_path / "k.db"
    fill(path, rows=60)
    chance = random.Random(seed)
    content = bytearray(path.read_bytes())
    start = chance.randrange(0, len(content) - 512)
    content[start : start + 512] = chance.randbytes(512)
    path.write_bytes(content)
    said = []
    for ask in (
        lambda: read_all(path),
        lambda: fill(path),
        lambda: lookup.find(path, WORKLOAD, TARGET),
        lambda: lookup.stored(path, "softmax"),
    ):
        try:
            ask()
        except StoreError as error:
            said.append(str(error))
        except LookupError:  # there is no winner any more
            pass
    assert all(str(path) in text and "\n" not in text for text in said)
    if seed == 0:
        told(
            "database with 512 bytes overwritten",
            said[0] if said else "read, and not damaged where it counts",
        )


def test_cut_short_it_says_so_and_a_copy_goes_on(tmp_path: Path, told: Told) -> None:
    path, copy = tmp_path / "k.db", tmp_path / "copy.db"
    fill(path, rows=60)
    shutil.copy(path, copy)
    path.write_bytes(path.read_bytes()[: 4096 * 3])
    with pytest.raises(StoreError, match="is damaged; restore it from a copy, or move it away") as caught:
        read_all(path)
    told("database cut short", caught.value)
    copy.replace(path)
    assert read_all(path) > 60


def test_locked_for_good_a_tuner_says_who_and_keeps_what_it_has(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "k.db"
    fill(path, rows=3)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as holder,
        Store.open(path, timeout_s=0.2) as store,
    ):
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process; try again") as caught:
            store.record(WORKLOAD, TARGET, "s", 9, {"n": 9}, Outcome(Status.WRONG))
        assert len(store.evaluations(WORKLOAD, TARGET)) == 3, "readers do not wait"
        holder.execute("COMMIT")
        store.record(WORKLOAD, TARGET, "s", 9, {"n": 9}, Outcome(Status.WRONG))
        assert len(store.evaluations(WORKLOAD, TARGET)) == 4
    told("database locked by another process", caught.value)


def test_locked_for_a_while_it_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "k.db"
    fill(path)
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.4, lambda: holder.execute("COMMIT"))
    timer.start()
    with Store.open(path) as store:
        store.record(WORKLOAD, TARGET, "s", 9, {"n": 9}, Outcome(Status.WRONG))
    timer.join()
    holder.close()
    assert read_all(path)


@pytest.mark.parametrize("same", [True, False], ids=["the same workload", "two workloads"])
def test_two_tuners_at_once_on_one_database(same: bool, forks: Forks, tmp_path: Path, told: Told) -> None:
    """Each with a cache of its own, and so its own lock."""
    folders = [tmp_path / name for name in "ab"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        tuning.write_op(folder)
        if number and not same:
            text = (folder / "mine.py").read_text()
            (folder / "mine.py").write_text(text.replace("x * 2", "2 * x"))
    db = tmp_path / "k.db"
    runs = [Run(str(folder), environment={"KSEARCH_DB": str(db)}) for folder in folders]
    said = [(folder / "stderr") for folder in folders]
    assert forks(*runs) == [0, 0], [file.read_text() for file in said if file.exists()]
    found = rows(db)
    with closing(sqlite3.connect(db)) as connection:
        studies = connection.execute("SELECT study, count(*) FROM evaluations GROUP BY study").fetchall()
    assert [count for _, count in studies] == [tuning.CONFIGS] * len(studies)
    assert len(studies) == (1 if same else 2)
    assert {status for _, status, *_ in found.values()} == {"passed"}
    assert len(winners(db)) == len(studies)
    assert optuna_trials(db) >= tuning.CONFIGS * len(studies)
    assert all(len(measured(folder)) <= tuning.CONFIGS for folder in folders)
    told(
        f"two tuners at once, {'the same workload' if same else 'two workloads'}",
        f"both end well: {len(studies)} x {tuning.CONFIGS} candidates, {len(winners(db))} winner(s)",
    )


def test_a_clock_that_goes_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    """What is in force is what was promoted last, and no wait is measured by the clock on the wall."""
    path = tmp_path / "k.db"
    moment = datetime(2026, 6, 1, tzinfo=UTC)
    with Store.open(path) as store:
        for number in range(4):
            text = moment.isoformat(timespec="microseconds")
            monkeypatch.setattr("ksearch.store.now", lambda text=text: text)
            kept = Winner(WORKLOAD, TARGET, None, None, None, 1.0 + number, 1.0 + number, 0.5)
            store.promote(kept, source=None, binary=None, environment={})
            outcome = Outcome(Status.PASSED, time_us=2.0 + number)
            store.record(WORKLOAD, TARGET, "s", 0, {"n": 0}, outcome)
            moment -= timedelta(days=400)
        winner = store.find(WORKLOAD, TARGET)
        assert winner is not None
        assert winner.time_us == 4.0
        assert [each.time_us for each in store.history(WORKLOAD, TARGET)] == [1.0, 2.0, 3.0, 4.0]
        assert [each.outcome.time_us for each in store.evaluations(WORKLOAD, TARGET)] == [5.0]
    monkeypatch.setattr("time.time", lambda: 0.0)
    with Child("tests.evaluate.answers:open_echo") as child:
        assert child.call("hello", 20.0) == "hello"
    told("clock goes back by years", "the last promotion is in force; no limit is measured by it")


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """A command's beginning that mounts 400 KB at tmp_path/small for what follows."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=400k tmpfs {small}"
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount], check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    return [*unshare, f'{mount} && exec "$@"', "sh"]


def test_a_cache_on_a_full_disk_is_said_in_one_line(
    small_disk: list[str], tmp_path: Path, told: Told
) -> None:
    tuning.write_op(tmp_path)
    cache = tmp_path / "small" / "cache"
    script = f"""
from pathlib import Path
from tests.faults import tuning
from ksearch.errors import KsearchError
(Path({str(tmp_path)!r}) / "small" / "ballast").write_bytes(bytes(390_000))
try:
    tuning.tune(tuning.Run({str(tmp_path)!r}, environment={{"KSEARCH_CACHE_DIR": {str(cache)!r}}}))
except KsearchError as error:
    print(error)
"""
    command = [*small_disk, sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    assert "No space left" in done.stdout
    told("disk full, where the cache is", done.stdout)


def test_a_full_disk_keeps_what_was_recorded_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    """The limit on the size of a file gives what a disk gives: a write that fails."""
    path = tmp_path / "k.db"
    with Store.open(path) as store:
        store.record(WORKLOAD, TARGET, "s", 0, {"n": 0}, Outcome(Status.WRONG))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        recorded, said = 1, ""
        while not said and recorded < 999:
            try:
                outcome = Outcome(Status.WRONG, message="x" * 2000)
                store.record(WORKLOAD, TARGET, "s", recorded, {"n": recorded}, outcome)
                recorded += 1
            except StoreError as error:
                said = str(error)
            finally:
                if said:
                    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(path) in said
        assert "\n" not in said
        assert [each.number for each in store.evaluations(WORKLOAD, TARGET)] == list(range(recorded))
        store.record(WORKLOAD, TARGET, "s", recorded, {"n": recorded}, Outcome(Status.WRONG))
    told("disk full, where the database is", said)


def test_one_row_of_nonsense_is_one_error(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "k.db"
    fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE winners SET time_us = 'soon'")
    for ask in (
        lambda: read_all(path),
        lambda: lookup.find(path, WORKLOAD, TARGET),
        lambda: Store.open(path).union().__enter__(),
    ):
        with pytest.raises(KsearchError, match="time_us is 'soon'") as caught:
            ask()
        assert str(path) in str(caught.value)
    told("database with nonsense in a row", caught.value)


def test_other_rows_are_read_past_it(tmp_path: Path) -> None:
    """A winner is found by its key alone."""
    path = tmp_path / "k.db"
    other = Workload("softmax", (4, 16))
    fill(path)
    with Store.open(path) as store:
        kept = Winner(other, TARGET, None, None, None, 1.0, 1.0, 0.5)
        store.promote(kept, source=None, binary=None, environment={})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE winners SET time_us = 'soon' WHERE id = 1")
    assert lookup.find(path, other, TARGET).winner.time_us == 1.0
    with pytest.raises(StoreError):
        lookup.find(path, PYTORCH_WON.workload, TARGET)

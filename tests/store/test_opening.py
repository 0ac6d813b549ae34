"""Every way in which a database cannot be opened or written, each with one clear line."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys

import pytest
from sqlalchemy import event

from ksearch.errors import NewerSchema, StoreError
from ksearch.store import Store
from ksearch.types import Outcome, Status, Target, Winner, Workload

WORKLOAD, TARGET = Workload("softmax", (4, 8)), Target("cpu", "x86_64", "Xeon")
PYTORCH_WON = Winner(WORKLOAD, TARGET, None, None, None, 1.0, 1.0, 0.5)


def refuses(words: str, *arguments, error: type[Exception] = StoreError, **options) -> None:
    with pytest.raises(error, match=words) as caught:
        Store.open(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert str(arguments[0]) in str(caught.value)


def fill(path, rows: int = 1) -> None:
    with Store.open(path) as store:
        store.promote(PYTORCH_WON, source=None, binary=None, environment={})
        for number in range(rows):
            store.record(
                WORKLOAD, TARGET, "s", number, {"n": number}, Outcome(Status.WRONG, message="x" * 200)
            )


def record_until_it_fails(store, recorded: list[int]) -> None:
    for number in range(1, 2000):
        store.record(WORKLOAD, TARGET, "s", number, {"n": number}, Outcome(Status.WRONG, message="x" * 200))
        recorded.append(number)


def test_missing_folders_are_made(tmp_path):
    fill(tmp_path / "a" / "b" / "k.db")
    assert (tmp_path / "a" / "b" / "k.db").is_file()


@pytest.mark.parametrize("options", [{"create": False}, {"readonly": True}])
def test_a_missing_file_is_not_made_without_leave(tmp_path, options):
    refuses("ksearch tune", tmp_path / "no.db", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_text_file_is_not_a_database(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary " * 100)
    refuses("is not a database", path)
    refuses("is not a database", path, readonly=True)
    assert path.read_text().startswith("dear diary"), "it is left as it was"


def test_a_folder_is_not_a_database(tmp_path):
    refuses("is a folder", tmp_path)


def test_a_path_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot make the folder .*file"):
        Store.open(tmp_path / "file" / "sub" / "k.db")


def test_a_truncated_database_is_reported_not_believed(tmp_path):
    path = tmp_path / "k.db"
    fill(path, rows=300)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(StoreError, match="damaged") as caught, Store.open(path) as store:
        store.evaluations(WORKLOAD, TARGET)
    assert str(path) in str(caught.value)


def test_a_newer_database_is_left_alone(tmp_path):
    path = tmp_path / "k.db"
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO ksearch_schema VALUES (999, 'later')")
    connection.close()
    before = path.read_bytes()
    refuses("newer ksearch", path, error=NewerSchema)
    refuses("newer ksearch", path, error=NewerSchema, readonly=True)
    assert path.read_bytes() == before


def test_another_programs_tables_are_not_taken_over(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE artifacts (name TEXT)")
    connection.close()
    refuses("artifacts", path)
    with sqlite3.connect(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    connection.close()
    assert names == ["artifacts"], "the transaction left nothing behind"


def test_a_database_of_optuna_alone_gets_our_tables_and_optuna_keeps_its_own(tmp_path):
    optuna = pytest.importorskip("optuna")
    path = tmp_path / "both? #1.db"

    def studies(url: str) -> list[str]:
        storage = optuna.storages.RDBStorage(url)
        try:
            return optuna.get_all_study_names(storage)
        finally:
            storage.engine.dispose()

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/both%3F %231.db")
    optuna.create_study(storage=storage, study_name="theirs")
    storage.engine.dispose()
    refuses("holds no results", path, readonly=True)
    fill(path)
    with Store.open(path) as store:
        assert studies(store.url) == ["theirs"]
        assert store.winners() == [store.find(WORKLOAD, TARGET)]


def test_optuna_writes_while_the_store_is_open(tmp_path):
    optuna = pytest.importorskip("optuna")
    with Store.open(tmp_path / "k.db") as store:
        storage = optuna.storages.RDBStorage(store.url)
        study = optuna.create_study(storage=storage, study_name="s")
        for number in range(3):
            study.add_trial(optuna.trial.create_trial(value=float(number)))
            store.record(WORKLOAD, TARGET, "s", number, {"n": number}, Outcome(Status.WRONG))
        assert len(study.trials) == len(store.evaluations(WORKLOAD, TARGET)) == 3
        storage.engine.dispose()


def test_a_writer_that_does_not_let_go_is_named(tmp_path):
    path = tmp_path / "k.db"
    fill(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    refuses("locked by another process", path, timeout_s=0.05)
    with Store.open(path, readonly=True, timeout_s=0.05) as store:
        assert store.find(WORKLOAD, TARGET) is not None, "readers do not wait for it"
    holder.execute("COMMIT")
    holder.close()
    fill(path)


def test_a_full_disk_keeps_what_was_recorded(tmp_path):
    """SQLite's own limit on the file gives the same SQLITE_FULL as a disk without space."""
    path = tmp_path / "k.db"
    fill(path)
    with Store.open(path) as store:

        @event.listens_for(store._reader, "checkout")
        def shrink(connection, _record, _proxy):
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")

        recorded = []
        with pytest.raises(StoreError, match="disk is full"):
            record_until_it_fails(store, recorded)
        kept = store.evaluations(WORKLOAD, TARGET)
        assert recorded
        assert [e.number for e in kept] == [0, *recorded]
        event.remove(store._reader, "checkout", shrink)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a folder read-only")
def test_a_read_only_disk_can_be_read_but_not_written(tmp_path):
    path = tmp_path / "disk" / "k.db"
    fill(path)
    folder = path.parent
    code = f"""
from ksearch.store import Store
from ksearch.errors import StoreError
for options in ({{"readonly": True}}, {{}}):
    try:
        with Store.open({str(path)!r}, **options) as store:
            print(len(store.winners()), "winners")
    except StoreError as error:
        print(error)
"""
    mount = (
        f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}' || exit 77; exec \"$@\""
    )
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("may not mount here")
    first, second = done.stdout.splitlines()
    assert first == "1 winners"
    assert "read-only" in second
    assert str(path) in second

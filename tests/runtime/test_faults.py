"""The database is replaced, cut short or locked while the program runs, and processes are forked from it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import ksearch
from ksearch import env
from ksearch.runtime import Match, lookup
from ksearch.store import Store
from tests.runtime.conftest import promote

SHAPE = (4, 8)


def checkpoint() -> None:
    """Everything into the file itself."""
    connection = sqlite3.connect(env.database_path())
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def test_a_connection_is_kept_between_lookups(backend, monkeypatch):
    promote("softmax", SHAPE)
    opened = []
    real = lookup.open_readonly
    monkeypatch.setattr(lookup, "open_readonly", lambda *given: opened.append(1) or real(*given))
    for _ in range(3):
        assert ksearch.load("softmax", SHAPE).match is Match.EXACT
        assert ksearch.load("softmax", (5, 8)).match is Match.FALLBACK
    assert len(opened) == 1


def test_a_winner_that_another_process_adds_is_found(backend):
    assert ksearch.load("softmax", SHAPE).match is Match.FALLBACK
    promote("softmax", (9, 9))
    assert ksearch.load("softmax", SHAPE).match is Match.FALLBACK
    promote("softmax", SHAPE)
    assert ksearch.load("softmax", SHAPE).match is Match.EXACT


def test_a_file_put_in_its_place_is_read(backend, tmp_path):
    promote("softmax", SHAPE, 7.0)
    checkpoint()
    shutil.copy(env.database_path(), tmp_path / "other.db")
    promote("softmax", SHAPE, 42.0)
    assert (ksearch.load("softmax", SHAPE)(torch.randn(SHAPE)) == 42).all()
    for name in ("-wal", "-shm"):
        env.database_path().with_name(env.database_path().name + name).unlink(missing_ok=True)
    (tmp_path / "other.db").replace(env.database_path())
    assert (ksearch.load("softmax", SHAPE)(torch.randn(SHAPE)) == 7).all()


def test_a_file_that_goes_away_and_comes_back(backend, tmp_path):
    promote("softmax", SHAPE)
    checkpoint()
    loaded = ksearch.load("softmax", SHAPE)
    env.database_path().replace(tmp_path / "aside.db")
    assert ksearch.load("softmax", SHAPE).match is Match.FALLBACK
    assert (loaded(torch.randn(SHAPE)) == 42).all(), "what is loaded needs no file"
    (tmp_path / "aside.db").replace(env.database_path())
    assert ksearch.load("softmax", SHAPE).match is Match.EXACT


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_file_cut_short_under_an_open_connection(backend, caplog, keep):
    promote("softmax", SHAPE)
    checkpoint()
    assert ksearch.load("softmax", SHAPE).match is Match.EXACT
    whole = env.database_path().read_bytes()
    os.truncate(env.database_path(), keep)
    handle = ksearch.load("softmax", SHAPE)
    x = torch.randn(SHAPE)
    assert handle.match is Match.FALLBACK
    assert torch.equal(handle(x), torch.softmax(x, -1))
    assert "database" in caplog.text
    env.database_path().write_bytes(whole)
    assert ksearch.load("softmax", SHAPE).match is Match.EXACT


def test_a_file_that_is_locked_for_all_is_told_and_pytorch_runs(backend, caplog, monkeypatch):
    promote("softmax", SHAPE)
    connection = sqlite3.connect(env.database_path(), isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(lookup, "_TIMEOUT_S", 0.1)
    assert ksearch.load("softmax", SHAPE).match is Match.FALLBACK
    assert "is locked by another process" in caplog.text
    connection.execute("ROLLBACK")
    connection.close()
    assert ksearch.load("softmax", SHAPE).match is Match.EXACT


def test_threads_look_up_side_by_side(backend):
    for rows in range(1, 9):
        promote("softmax", (rows, 8))
    found = []

    def look() -> None:
        found.extend(ksearch.load("softmax", (rows, 8)).match for rows in range(1, 9))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Match.EXACT] * 32


def test_a_forked_process_looks_up_and_calls():
    """While another thread of the parent holds every lock there is."""
    code = """
        import os, threading, torch, ksearch
        from ksearch.runtime import library, lookup, notice
        torch.set_num_threads(1)  # PyTorch itself would wait for its threads, which no fork has
        x = torch.randn(4, 8)
        ksearch.ops.softmax(x)  # opens the database, and keeps it
        parent = dict(lookup._open)
        held = threading.Event()
        def hold():
            with lookup._lock, notice._lock, library._lock, ksearch.ops.softmax._lock:
                held.set()
                threading.Event().wait(20)
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            y = torch.randn(5, 8)
            good = torch.equal(ksearch.ops.softmax(y), torch.softmax(y, -1))
            good = good and torch.equal(ksearch.ops.relu(y), torch.relu(y))  # is registered only now
            good = good and all(lookup._open[path] is not known for path, known in parent.items())
            os._exit(0 if good and parent else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    """
    Store.open(env.database_path()).close()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.stdout.strip() == "0", done.stderr

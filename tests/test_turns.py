"""Who waits for whom before a test on a GPU; threads stand for processes, for they open the files anew."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.turns import Share, turn

LIMIT_S = 30.0


class Test:
    """One that has its share until it is told to end."""

    __test__ = False

    def __init__(self, share: Share, folder: Path) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

        def run() -> None:
            with turn(share, folder):
                self.begun.set()
                assert self.may_end.wait(LIMIT_S)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def end(self) -> None:
        assert self.begun.wait(LIMIT_S)
        self.may_end.set()
        self._thread.join(LIMIT_S)


def waits_at(path: Path) -> bool:
    """Whether somebody keeps that lock within the time."""
    probe = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done = subprocess.run([sys.executable, "-c", probe, path], stderr=subprocess.DEVNULL, check=False)
        if done.returncode:
            return True
    return False


def test_one_of_the_large_ones_runs_beside_the_others(tmp_path: Path) -> None:
    running = [Test("some", tmp_path), Test("some", tmp_path), Test("large", tmp_path)]
    for each in running:
        assert each.begun.wait(LIMIT_S)
    second = Test("large", tmp_path)
    assert not second.begun.wait(0.1)
    running[2].end()
    assert second.begun.wait(LIMIT_S)
    for each in (running[0], running[1], second):
        each.end()


def test_who_takes_all_is_alone_and_is_not_kept_waiting_for_ever(tmp_path: Path) -> None:
    first, large = Test("some", tmp_path), Test("large", tmp_path)
    for each in (first, large):
        assert each.begun.wait(LIMIT_S)
    whole = Test("whole", tmp_path)
    assert waits_at(tmp_path / "gate")
    late = Test("some", tmp_path)
    first.end()
    assert not whole.begun.wait(0.1)
    large.end()
    assert whole.begun.wait(LIMIT_S)
    assert not late.begun.wait(0.1)
    whole.end()
    late.end()


def test_a_share_that_there_is_not_is_told() -> None:
    with pytest.raises(ValueError, match="one of some, large, whole"), turn("much"):  # type: ignore[arg-type]
        pass


def test_who_dies_holds_nothing(tmp_path: Path) -> None:
    dies = (
        "import os, pathlib, sys; from tests.turns import turn\n"
        "with turn('whole', pathlib.Path(sys.argv[1])): os._exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", dies, tmp_path], check=False)
    assert done.returncode == 3
    with turn("whole", tmp_path):
        assert list(tmp_path.iterdir())

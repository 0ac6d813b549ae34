"""Rows of a benchmark on several GPUs at once: one long-lived process a GPU, and one queue for all of them.

A row that fails, hangs or crashes its process is recorded as failed, and the rest goes on. Every row is on
disk as soon as it is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksearch import backends, env
from ksearch.errors import KsearchError, UsageError, WorkerError
from ksearch.evaluate.process import Answer, Child, ChildDied, ChildError, ChildTimeout

Row = dict[str, Any]
"""With its `workload`; an `error` where it failed, what was measured where not."""
_OPEN_S, _ROW_S = 120.0, 300.0
"""For importing torch from a cold disk; for a row, of which the search of the largest alone took 23 s."""


@dataclass(frozen=True)
class Seat:
    """One device with its share of the machine."""

    device: str
    visible: str | None
    """CUDA_VISIBLE_DEVICES of the process; None leaves it as it is."""
    cores: frozenset[int]
    folder: Path
    """For its database and its cache."""


def make_seats(device: str, count: int, folder: Path) -> list[Seat]:
    """One for each GPU, with equal shares of the cores. Raises NoSuchDevice, UsageError."""
    if count < 1 or (device == "cpu" and count > 1):
        raise UsageError(f"{count} seats on {device}: at least one, and all cores together are one device")
    backends.get(device).target(count - 1)
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // count)
    return [
        Seat(
            device,
            None if device == "cpu" else env.gpu_name(i),
            frozenset(cores[i * share : (i + 1) * share] or cores),
            folder / f"seat-{i}",
        )
        for i in range(count)
    ]


def serve(measure: Callable[[Any, str, Path], Row]) -> Answer:
    """A seat's side: the first message is the Seat, each later one a task that `measure` turns into a row.

    `measure` gets the task, the device and the path of the seat's database.
    """
    seat: Seat | None = None

    def answer(message: Any) -> Row | None:
        nonlocal seat
        if seat is None:
            seat = message
            seat.folder.mkdir(parents=True, exist_ok=True)
            os.environ["KSEARCH_CACHE_DIR"] = str(seat.folder / "cache")
            if seat.visible is not None:  # CUDA reads it when it is first used: importing torch is not that
                os.environ["CUDA_VISIBLE_DEVICES"] = seat.visible
            return None
        return measure(message, seat.device, seat.folder / "bench.db")

    return answer


class Run:
    """Tasks, as pairs of name and what `target` is sent, done by the seats in the order given."""

    def __init__(
        self,
        target: str,
        tasks: Sequence[tuple[str, Any]],
        keep: Callable[[Row], None],
        within_s: float | None = None,
        tell: Callable[[Row], str] = lambda row: f"{row['of copy_']:.3f} of copy_",
    ) -> None:
        """`tell` puts what was measured into a few words."""
        self._target = target
        self._tell = tell
        self._waiting = deque(tasks)
        self._total = len(tasks)
        self._done = 0
        self._keep = keep
        self._deadline = None if within_s is None else time.monotonic() + within_s
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._broken: Exception | None = None

    def on(self, seats: Sequence[Seat]) -> None:
        """Until all are done, or no more may be begun. Raises WorkerError where a seat does not open."""
        threads = [threading.Thread(target=self._work, args=(seat,), daemon=True) for seat in seats]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: what is half done is not kept
            with self._lock:
                self._waiting.clear()
                self._keep = lambda _: None
                for child in self._children:
                    if child.is_alive:
                        child.terminate()
            for thread in threads:
                thread.join()
            raise
        if self._broken is not None:
            raise self._broken

    def _work(self, seat: Seat) -> None:
        os.sched_setaffinity(0, seat.cores)  # of this thread, and so of the processes that it starts
        child: Child | None = None
        while (task := self._next()) is not None:
            name, message = task
            began = time.monotonic()
            try:
                if child is None or not child.is_alive:
                    child = self._open(seat)
                row: Row = child.call(message, _ROW_S)
            except _NotOpened as error:
                self._broken = error
                self._waiting.clear()
                break
            except KsearchError as error:
                row = {"workload": name, "error": f"{type(error).__name__}: {first_line(error)}"}
            except (ChildDied, ChildTimeout, ChildError, OSError) as error:
                print(error, getattr(error, "log", ""), file=sys.stderr)
                row = {"workload": name, "error": first_line(error)}
                if child is not None:  # after a CUDA error nothing works in that process
                    child.kill()
            with self._lock:
                self._keep(row)
                self._done += 1
                what = row.get("error") or self._tell(row)
                took_s = time.monotonic() - began
                print(f"{self._done}/{self._total} {name}: {what}; {took_s:.1f} s", flush=True)
        if child is not None:
            child.kill()

    def _next(self) -> tuple[str, Any] | None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            return None
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _open(self, seat: Seat) -> Child:
        child = Child(self._target)
        with self._lock:
            self._children.add(child)
        try:
            child.call(seat, _OPEN_S)
        except (ChildDied, ChildTimeout, ChildError, OSError) as error:
            child.kill()
            raise _NotOpened(f"the process of {seat.device} {seat.visible or ''} fails: {error}") from error
        return child


class _NotOpened(WorkerError):
    """A seat's process does not start."""


def first_line(error: Exception) -> str:
    """Of its message, which may be empty."""
    return (str(error).strip() or "no message").splitlines()[0]


class Journal:
    """Rows in a file, one line of JSON each, by workload."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Row]:
        """The latest row of each workload; no file is no row, nor is the half line of a killed run."""
        rows: dict[str, Row] = {}
        text = self._path.read_text() if self._path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows[row["workload"]] = row
        return rows

    def append(self, row: Row) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(row).encode() + b"\n")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a benchmark of many rows is asked for beside its name and commit."""
    parser.add_argument("--select", default="", metavar="REGEX", help="only the workloads that it finds")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to share the rows out to")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="append every finished row to this file")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="rows to take over; goes on in that file")
    parser.add_argument("--within", type=float, metavar="S", help="begin no row after so many seconds")


def limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the whole run, by the names of `measure_all`."""
    return {"gpus": arguments.gpus, "trials": arguments.trials, "within_s": arguments.within}


def command_of(arguments: argparse.Namespace, script: Path) -> str:
    """What was typed, as far as it decides the results."""
    select = f" --select '{arguments.select}'" if arguments.select else ""
    return f"python scripts/{script.name} --trials {arguments.trials} --gpus {arguments.gpus}{select}"


def collect(
    arguments: argparse.Namespace, measure: Callable[[dict[str, Row], Callable[[Row], None]], None]
) -> dict[str, Row]:
    """The rows that were there and those that `measure` adds, each on disk as soon as it is kept.

    `measure` gets the former and what takes a finished row. What cannot be done ends the script.
    """
    known = Journal(arguments.resume).read() if arguments.resume else {}
    file = arguments.rows or arguments.resume
    journal = Journal(file) if file else None

    def keep(row: Row) -> None:
        known[row["workload"]] = row
        if journal is not None:
            journal.append(row)

    try:
        measure(known, keep)
    except KsearchError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    return known

"""Finding a winner in the database with nothing but the standard library.

SQLAlchemy would add 150 ms to the start of a program and 0.1 ms to each lookup. The tables are those of
`ksearch.store.schema`. A connection is kept between lookups, which takes four fifths of a lookup's time away;
it is made anew where the file was replaced or changed, and in a process that was forked.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from ksearch.database import check_current, explain, garbled, open_readonly
from ksearch.errors import StoreError
from ksearch.launch import Launch
from ksearch.records import UNREADABLE, check_answer, check_certificate, check_near, check_workload
from ksearch.runtime.region import Neighbour
from ksearch.types import Target, Winner, Workload

_OLDEST = 1
"""Version of the first file whose winners and artifacts are as `_WINNER` reads them."""
_WITH_INNER = 2
"""That of the first file whose workloads are as `_WORKLOAD` reads them."""

_TIMEOUT_S = 5.0
"""Readers of a WAL file wait only while another process recovers it."""

_VERSION = "SELECT max(version) FROM ksearch_schema"
_HAS_VERSION = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'ksearch_schema'"
_WINNER = """
SELECT w.config, w.launch, w.artifact_digest, w.time_us, w.baseline_us, w.ceiling_us,
       w.certificate, w.created, a.binary
FROM winners AS w LEFT JOIN artifacts AS a ON a.digest = w.artifact_digest
WHERE w.workload_key = ? AND w.target_key = ? AND w.superseded IS NULL
"""
_WORKLOAD = 'k.op, k.shape, k.dtype, k.options, k.program, k.layout, k.policy, k.regime, k."inner"'
_NEIGHBOURS = f"""
SELECT w.target_key, w.baseline_us / w.time_us, json_extract(w.launch, '$.most_rows'),
       json_extract(w.certificate, '$.near'), {_WORKLOAD}
FROM workloads AS k JOIN winners AS w ON w.workload_key = k.key
WHERE k.op = ? AND k.cols = ? AND k."inner" = ? AND k.dtype = ?
  AND w.superseded IS NULL AND w.artifact_digest IS NOT NULL
"""  # noqa: S608  (no text from outside)
_STORED = f"""
SELECT DISTINCT w.target_key, {_WORKLOAD} FROM workloads AS k JOIN winners AS w ON w.workload_key = k.key
WHERE k.op = ? AND w.superseded IS NULL AND (w.artifact_digest IS NOT NULL OR NOT ?)
"""  # noqa: S608
_NEWEST = "SELECT max(id) FROM winners"

_Stamp: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    winner: Winner
    binary: bytes | None
    """None where PyTorch won."""


class _Certificate(Mapping[str, Any]):
    """Read when somebody asks for any of it: it is 8 KB, which takes as long as all else of a lookup (50 us).

    Raises StoreError there where it does not read.
    """

    def __init__(self, path: Path, workload: Workload, text: str) -> None:
        self._path, self._workload, self._text = path, workload, text

    @cached_property
    def _facts(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._text)
            check_certificate(found)
        except UNREADABLE as error:
            raise _unreadable(self._path, self._workload, error) from error
        return found

    def __getitem__(self, name: str) -> Any:
        return self._facts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


@dataclass(frozen=True, slots=True)
class _Open:
    connection: sqlite3.Connection
    stamp: _Stamp
    version: int


_open: dict[Path, _Open] = {}
_MOST_OPEN = 4
_lock = threading.Lock()


def find(path: Path, workload: Workload, target: Target) -> Found:
    """The winner in force.

    Raises LookupError where there is none, StoreError where the file cannot be read or is of another version.
    """
    rows = _rows(path, _WINNER, (workload.key, target.key))
    if not rows:
        raise LookupError(f"no winner for it in {path}")
    config, launch, artifact, time_us, baseline_us, ceiling_us, certificate, created, binary = rows[0]
    try:
        winner = Winner(
            workload=workload,
            target=target,
            config=None if config is None else json.loads(config),
            launch=None if launch is None else Launch.read(json.loads(launch)),
            artifact=artifact,
            time_us=time_us,
            baseline_us=baseline_us,
            ceiling_us=ceiling_us,
            certificate=_Certificate(path, workload, certificate),
            created=created,
        )
        return Found(check_answer(winner), binary)
    except UNREADABLE as error:
        raise _unreadable(path, workload, error) from error


def neighbours(path: Path, workload: Workload) -> list[Neighbour]:
    """Kernels of the same op, dtype and row length, on any target. Raises LookupError where there is no file,
    StoreError."""
    region = (workload.op, workload.cols, workload.inner, workload.dtype)
    rows = _rows(path, _NEIGHBOURS, region, oldest=_WITH_INNER)
    try:
        return [
            Neighbour(_workload(*facts), read_target(key), float(speedup), most_rows or 0, _near(near))
            for key, speedup, most_rows, near, *facts in rows
        ]
    except UNREADABLE as error:
        raise _unreadable(path, workload.op, error) from error


def stored(path: Path, op: str, *, kernels: bool = False) -> list[tuple[Workload, Target]]:
    """All that there are winners for, of one op; with `kernels` without those where PyTorch won.

    Raises LookupError where there is no file, StoreError.
    """
    rows = _rows(path, _STORED, (op, kernels), oldest=_WITH_INNER)
    try:
        return [(_workload(*facts), read_target(key)) for key, *facts in rows]
    except UNREADABLE as error:
        raise _unreadable(path, op, error) from error


def newest(path: Path) -> int:
    """The number of the winner that came last; 0 where there is none. Raises as `stored`."""
    ((number,),) = _rows(path, _NEWEST)
    return number or 0


def _unreadable(path: Path, what: str | Workload, error: BaseException) -> StoreError:
    """Where the rows of a winner do not mean anything."""
    return StoreError(f"database {path} is damaged: a winner for {what} does not read ({error})")


def read_target(key: str) -> Target:
    """What `Target.key` tells of one."""
    backend, arch, device = key.split("/", 2)
    return Target(backend, arch, device)


def _workload(op: str, shape: str, dtype: str, options: str, *others: Any) -> Workload:
    program, layout, policy, regime, inner = others
    workload = Workload(
        op,
        tuple(int(dim) for dim in shape.split("x") if dim),
        dtype,
        tuple((name, value) for name, value in json.loads(options)),
        program,
        layout=layout,
        policy=policy,
        regime=regime,
        inner=inner,
    )
    return check_workload(workload)


def _near(text: str | None) -> Any:
    near = json.loads(text or "[]")
    check_near(near)
    return near


# ---- connections -----------------------------------------------------------------------------------------


def _rows(
    path: Path, query: str, values: tuple[Any, ...] = (), *, oldest: int = _OLDEST
) -> list[tuple[Any, ...]]:
    """What the query gives, one thread at a time; nothing where the file is older than `oldest`.

    Raises LookupError where there is no file, and StoreError for what SQLite reports: then the file is opened
    anew the next time.
    """
    with _lock:
        try:
            database = _at(path)
            if database.version < oldest:
                return []
            return database.connection.execute(query, values).fetchall()
        except (sqlite3.Error, StoreError, UnicodeDecodeError) as error:
            _close(path)
            if isinstance(error, sqlite3.Error):
                raise explain(error, path) from error
            if isinstance(error, UnicodeDecodeError):
                raise garbled(error, path) from error
            raise


def _at(path: Path) -> _Open:
    """Raises LookupError, StoreError, sqlite3.Error."""
    try:
        facts = path.stat()
    except OSError:
        facts = None
    if facts is None or not stat.S_ISREG(facts.st_mode):
        _close(path)
        raise LookupError(f"no database at {path}")
    # Commits go to the log beside it, so the file itself is changed by a checkpoint, now and then.
    stamp = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    known = _open.get(path)
    if known is not None and known.stamp == stamp:
        return known
    _close(path)
    if len(_open) >= _MOST_OPEN:
        _close(next(iter(_open)))
    connection = open_readonly(path, _TIMEOUT_S)
    try:
        (has_version,) = connection.execute(_HAS_VERSION).fetchone()
        version = connection.execute(_VERSION).fetchone()[0] if has_version else 0
        check_current(version, path, _OLDEST)
    except (sqlite3.Error, StoreError, UnicodeDecodeError):
        connection.close()
        raise
    _open[path] = _Open(connection, stamp, version)
    return _open[path]


def _close(path: Path) -> None:
    known = _open.pop(path, None)
    if known is not None:
        known.connection.close()


_left: list[_Open] = []


def _after_fork() -> None:
    """SQLite forbids a child to use, or to close, what its parent opened; the lock may have been held."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _left.extend(_open.values())
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)

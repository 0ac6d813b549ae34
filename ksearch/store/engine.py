"""Opening a SQLite file for SQLAlchemy so that many may read while one writes.

SQLAlchemy leaves BEGIN to Python's sqlite3, which leaves it out before DDL and reads; here every
transaction begins by itself, and a writing one takes the lock at once instead of failing half-way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from ksearch.database import explain, garbled, open_readonly


def url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def writable(path: Path, timeout_s: float) -> Engine:
    """Makes the file where it is missing; another writer is waited for `timeout_s` seconds.

    With `execution_options(writes=True)` a transaction takes the write lock when it begins.
    """
    engine = create_engine(url(path), connect_args={"timeout": timeout_s})

    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours, see `begin`
        connection.execute("PRAGMA journal_mode = WAL")
        # A commit reaches the operating system, so a killed process loses nothing; a power cut may lose
        # the last ones, but never damages the file. FULL would wait for the disk at each candidate.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begin)
    return engine


def readable(path: Path, timeout_s: float) -> Engine:
    """Works on a read-only disk, too."""
    return create_engine(url(path), creator=lambda: open_readonly(path, timeout_s))


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """What SQLite reports inside comes out as StoreError: one line that names the file."""
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error.orig, sqlite3.Error):
            raise
        raise explain(error.orig, path) from error
    except sqlite3.Error as error:  # from the pool, while connecting
        raise explain(error, path) from error
    except UnicodeDecodeError as error:
        raise garbled(error, path) from error

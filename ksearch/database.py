"""The file of results as the store (SQLAlchemy) and the loader (plain sqlite3) both see it.

A WAL database in a folder that cannot be written (a container image, a read-only mount) does not open in
SQLite's read-only mode, which wants to make a `-shm` file; it is then read as immutable.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ksearch.errors import NewerSchema, StoreError

SCHEMA_VERSION = 4
"""Of the tables in `ksearch.store.schema`; the number of migrations."""

_WORDS = {
    sqlite3.SQLITE_NOTADB: "is not a database; name another file with --db or KSEARCH_DB",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a copy, or move it away and tune again",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: its folder is missing, read-only or not yours",
    sqlite3.SQLITE_READONLY: "is read-only; name another file with --db or KSEARCH_DB",
    sqlite3.SQLITE_PERM: "may not be accessed; name another file with --db or KSEARCH_DB",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; what was recorded before is kept",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
    sqlite3.SQLITE_BUSY: "is locked by another process; try again when that is done",
    sqlite3.SQLITE_LOCKED: "is locked by another connection; try again when that is done",
}


def explain(error: sqlite3.Error, path: Path) -> StoreError:
    """SQLite's error as one line for a person, told by its code."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only say more
    words = _WORDS.get(code)
    return StoreError(f"database {path} {words} ({error})" if words else f"database {path}: {error}")


def garbled(error: UnicodeDecodeError, path: Path) -> StoreError:
    """Where SQLite's own words quote bytes of the file that are no text."""
    return StoreError(f"database {path} {_WORDS[sqlite3.SQLITE_CORRUPT]} ({error.reason})")


def check_schema(found: int, path: Path, known: int = SCHEMA_VERSION) -> None:
    """Raises NewerSchema where the file is of a later version than this ksearch knows."""
    if found > known:
        raise NewerSchema(
            f"database {path} was written by a newer ksearch (schema {found}, this one knows {known}); "
            "upgrade ksearch, or name another file with --db or KSEARCH_DB"
        )


def check_current(found: int, path: Path, oldest: int = SCHEMA_VERSION) -> None:
    """Raises StoreError where the file, which may only be read, is not of today's version.

    `oldest` is that of the first version whose tables the reader can do with.
    """
    check_schema(found, path)
    if found < oldest:
        raise StoreError(
            f"database {path} holds no results of ksearch yet; run `ksearch tune`"
            if found == 0
            else f"database {path} was written by an older ksearch; any `ksearch tune` brings it up to date"
        )


def open_readonly(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection that may be used from any thread. Raises sqlite3.Error."""
    uri = path.absolute().as_uri()

    def connect(mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{uri}?{mode}", uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")  # opening alone reads nothing
        except (sqlite3.Error, UnicodeDecodeError):
            connection.close()
            raise
        return connection

    try:
        return connect("mode=ro")
    except sqlite3.OperationalError as error:
        log = path.with_name(path.name + "-wal")
        pending = log.exists() and log.stat().st_size > 0  # commits that an immutable reader would not see
        if error.sqlite_errorcode != sqlite3.SQLITE_CANTOPEN or not path.is_file() or pending:
            raise
        return connect("immutable=1")

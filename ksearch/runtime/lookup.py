"""Finding a winner in the database with nothing but the standard library.

SQLAlchemy would add 150 ms to the start of a program and 0.1 ms to each lookup. The tables are those of
`ksearch.store.schema`; the file is opened for one lookup and closed again.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ksearch.database import check_current, explain, open_readonly
from ksearch.errors import StoreError
from ksearch.types import Launch, Target, Winner, Workload

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


@dataclass(frozen=True, slots=True)
class Found:
    winner: Winner
    binary: bytes | None
    """None where PyTorch won."""


def find(path: Path, workload: Workload, target: Target) -> Found:
    """The winner in force.

    Raises LookupError where there is none, StoreError where the file cannot be read or is of another version.
    """
    if not path.is_file():
        raise LookupError(f"no database at {path}")
    try:
        with closing(open_readonly(path, _TIMEOUT_S)) as connection:
            (has_version,) = connection.execute(_HAS_VERSION).fetchone()
            check_current(connection.execute(_VERSION).fetchone()[0] if has_version else 0, path)
            row = connection.execute(_WINNER, (workload.key, target.key)).fetchone()
    except sqlite3.Error as error:
        raise explain(error, path) from error
    if row is None:
        raise LookupError(f"no winner for it in {path}")
    config, launch, artifact, time_us, baseline_us, ceiling_us, certificate, created, binary = row
    try:
        winner = Winner(
            workload=workload,
            target=target,
            config=None if config is None else json.loads(config),
            launch=None if launch is None else Launch(**json.loads(launch)),
            artifact=artifact,
            time_us=time_us,
            baseline_us=baseline_us,
            ceiling_us=ceiling_us,
            certificate=json.loads(certificate),
            created=created,
        )
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"database {path} is damaged: its winner for {workload} does not read ({error})"
        ) from error
    return Found(winner, binary)

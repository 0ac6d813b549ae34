"""The database of results: what was evaluated, what won, and everything needed to run it again.

One SQLite file, shared with Optuna's own tables. What a method recorded is in the file when it returns,
even if the process is killed the moment after.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, or_, select
from sqlalchemy.orm import Session

from ksearch import private, records
from ksearch.database import check_current
from ksearch.errors import StoreError
from ksearch.store import engine, queries, union
from ksearch.store.migrations import migrate, now, version
from ksearch.store.schema import (
    ArtifactRow,
    EnvironmentRow,
    EvaluationRow,
    KillTableRow,
    TargetRow,
    WinnerRow,
    WorkloadRow,
)
from ksearch.store.union import Added, Conflict, Record, Trial, Union
from ksearch.store.values import Evaluation, Kill, KillTable, StoredArtifact
from ksearch.types import Artifact, Config, Outcome, Target, Winner, Workload, canonical_json, digest

__all__ = [
    "Added",
    "Conflict",
    "Evaluation",
    "Kill",
    "KillTable",
    "Record",
    "Store",
    "StoredArtifact",
    "Trial",
    "Union",
]


class Store:
    """An open database; a context manager. Threads may share it; writes are short and one at a time."""

    def __init__(self, path: Path, reader: Engine) -> None:
        """Use `Store.open`."""
        self.path = path
        self._reader = reader
        self._writer = reader.execution_options(writes=True)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        readonly: bool = False,
        timeout_s: float = 10.0,
    ) -> Self:
        """Open the file, bring an older one up to date, and with `create` make a missing one and its folder.

        Another process that writes is waited for `timeout_s` seconds. Raises StoreError where that cannot
        be done (not a database, read-only, no folder, full disk, locked), NewerSchema for a newer version.
        """
        path = Path(path).expanduser().absolute()
        if path.is_dir():
            raise StoreError(f"{path} is a folder, not a database; name a file in it: {path / 'ksearch.db'}")
        if readonly or not create:
            _must_exist(path)
        else:
            _make_file(path)
        store = cls(path, (engine.readable if readonly else engine.writable)(path, timeout_s))
        try:
            with engine.clear_errors(path):
                store._check_version() if readonly else migrate(store._writer)
        except StoreError:
            store.close()
            raise
        return store

    @property
    def url(self) -> str:
        """For Optuna's storage on the same file."""
        return engine.url(self.path).render_as_string()

    def record(
        self,
        workload: Workload,
        target: Target,
        study: str,
        number: int,
        config: Config,
        outcome: Outcome,
        artifact: Artifact | None = None,
    ) -> None:
        """Keep what evaluating one candidate gave; the same config again in this study replaces it.

        An artifact that is known from before stays where none is given (a later check of the same binary).
        Raises StoreError where the file cannot be written (a full disk): nothing of the call is kept then.
        """
        config = dict(config)
        with self._write() as session:
            identity = {
                "workload_key": queries.workload_key(session, workload),
                "target_id": queries.target_id(session, target),
                "study": study,
                "config_digest": digest(canonical_json(config))[:32],
            }
            row = session.scalar(select(EvaluationRow).filter_by(**identity))
            if row is None:
                row = EvaluationRow(**identity, registers=0, spill_bytes=0, compile_s=0.0)
            row.number = number
            row.config = config
            row.status = outcome.status.value
            row.time_us = outcome.time_us
            row.spread_us = outcome.spread_us
            row.repeats = outcome.repeats
            row.error = outcome.error
            row.message = outcome.message
            if artifact is not None:
                row.artifact_key = artifact.key
                row.artifact_digest = artifact.digest
                row.registers = artifact.registers
                row.spill_bytes = artifact.spill_bytes
                row.compile_s = artifact.compile_s
            row.created = now()
            session.add(row)

    def evaluations(self, workload: Workload, target: Target) -> list[Evaluation]:
        """Everything recorded for them, in all studies, in the order it was first recorded."""
        query = (
            select(EvaluationRow)
            .join(TargetRow)
            .where(EvaluationRow.workload_key == workload.key, TargetRow.key == target.key)
            .order_by(EvaluationRow.id)
        )
        with self._read() as session:
            return [row.value() for row in session.scalars(query)]

    def promote(
        self,
        winner: Winner,
        *,
        source: str | None,
        binary: bytes | None,
        log: str = "",
        environment: Mapping[str, str],
    ) -> None:
        """Put a winner in force; the one before it stays as history. Raises StoreError.

        `source` and `binary` are None exactly where PyTorch won. `environment` holds the versions it was
        measured under. `winner.created` is set to now where it is empty.
        """
        if (winner.artifact is None) != (binary is None) or (binary is None) != (source is None):
            raise StoreError(f"cannot promote {winner.workload}: a kernel needs both source and binary")
        if binary is not None and digest(binary) != winner.artifact:
            raise StoreError(f"cannot promote {winner.workload}: the binary is not the one that was measured")
        at = now()
        versions = EnvironmentRow.of(environment)
        with self._write() as session:
            if binary is not None and source is not None:
                session.merge(ArtifactRow(digest=winner.artifact, source=source, binary=binary, log=log))
            session.merge(versions)
            for older in session.scalars(queries.in_force(winner.workload, winner.target)):
                older.superseded = at
            session.flush()  # the older one leaves before the new one enters: one in force at a time
            key = queries.workload_key(session, winner.workload)
            target_id = queries.target_id(session, winner.target)
            dated = replace(winner, created=winner.created or at)
            session.add(WinnerRow.of(dated, key, target_id, versions))

    def find(self, workload: Workload, target: Target) -> Winner | None:
        """The winner in force."""
        with self._read() as session:
            row = session.scalar(queries.in_force(workload, target))
            return row.value() if row else None

    def history(self, workload: Workload, target: Target) -> list[Winner]:
        """Every winner there was, oldest first; the last is the one in force."""
        query = (
            select(WinnerRow)
            .where(WinnerRow.workload_key == workload.key, WinnerRow.target_key == target.key)
            .order_by(WinnerRow.id)
        )
        with self._read() as session:
            return [row.value() for row in session.scalars(query)]

    def winners(
        self, op: str | None = None, dtype: str | None = None, device: str | None = None
    ) -> list[Winner]:
        """Those in force, by op, dtype, policy, size; `device` is a backend (`cuda`) or a device's name."""
        query = queries.winners().order_by(
            WorkloadRow.op,
            WorkloadRow.dtype,
            WorkloadRow.policy,
            WorkloadRow.cols,
            WorkloadRow.rows,
            WorkloadRow.inner,
            WinnerRow.target_key,
        )
        if op is not None:
            query = query.where(WorkloadRow.op == op)
        if dtype is not None:
            query = query.where(WorkloadRow.dtype == dtype)
        if device is not None:
            query = query.where(or_(TargetRow.backend == device, TargetRow.device == device))
        with self._read() as session:
            return [row.value() for row in session.scalars(query)]

    def neighbours(self, workload: Workload, target: Target, limit: int = 3) -> list[Winner]:
        """Kernels that won for other sizes of the same computation here, nearest first: where to start."""
        query = queries.winners().where(
            WorkloadRow.op == workload.op,
            WorkloadRow.program == workload.program,
            WorkloadRow.dtype == workload.dtype,
            WorkloadRow.policy == workload.policy,
            WorkloadRow.regime == workload.regime,
            WorkloadRow.key != workload.key,
            WinnerRow.target_key == target.key,
            WinnerRow.artifact_digest.is_not(None),
        )
        with self._read() as session:
            found = [row.value() for row in session.scalars(query)]

        def distance(winner: Winner) -> tuple[float, ...]:
            other = winner.workload
            sizes = ((other.cols, workload.cols), (other.rows, workload.rows), (other.inner, workload.inner))
            return tuple(abs(math.log(one / another)) for one, another in sizes if another)

        return sorted(found, key=distance)[:limit]

    def artifact(self, digest: str) -> StoredArtifact | None:
        """A winner's source, binary and log."""
        with self._read() as session:
            row = session.get(ArtifactRow, digest)
            return StoredArtifact(row.source, row.binary, row.log).of(digest) if row else None

    def environment(self, workload: Workload, target: Target) -> dict[str, str]:
        """The versions under which the winner in force was measured; empty without one."""
        with self._read() as session:
            row = session.scalar(queries.in_force(workload, target))
            return dict(row.environment.versions) if row else {}

    def keep_kills(self, table: KillTable) -> None:
        """In place of the one that was there for the same op, target and facts. Raises StoreError."""
        with self._write() as session:
            session.merge(
                KillTableRow(
                    key=table.key,
                    op=table.op,
                    facts=dict(table.facts),
                    target_key=table.target_key,
                    kills=[[kill.fault, kill.verdict, kill.message] for kill in table.kills],
                    created=now(),
                )
            )

    def kills(self, op: str, target: Target, facts: Mapping[str, Any]) -> KillTable | None:
        """What was kept for them."""
        asked = KillTable(op, target.key, facts, ())
        with self._read() as session:
            row = session.get(KillTableRow, asked.key)
            return None if row is None else replace(asked, kills=tuple(Kill(*each) for each in row.kills))

    def records(self) -> Iterator[Record]:
        """Every winner there was, with all that belongs to it: what a union takes."""
        with self._read() as session:
            yield from union.records(session)

    def trials(self) -> Iterator[Trial]:
        """Every evaluated candidate, as a union takes it."""
        with self._read() as session:
            yield from union.trials(session)

    @contextmanager
    def union(self) -> Iterator[Union]:
        """Add others to this one, all or nothing: what fails inside leaves the file as it was."""
        with self._write() as session, self._readable():
            yield Union(session)

    def close(self) -> None:
        self._reader.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with engine.clear_errors(self.path), self._readable(), Session(self._reader) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with engine.clear_errors(self.path), Session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What no row of ours can hold comes out as StoreError."""
        try:
            yield
        except records.UNREADABLE as error:
            raise StoreError(
                f"database {self.path} is damaged: a row does not read ({error}); restore it from a copy, or "
                "move it away and tune again"
            ) from error

    def _check_version(self) -> None:
        with self._reader.connect() as connection:
            check_current(version(connection), self.path)


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise StoreError(
            f"no database at {path}; run `ksearch tune`, or name another with --db or KSEARCH_DB"
        )


def _make_file(path: Path) -> None:
    """Before SQLite would make it, for everyone to read; the files beside it get the rights of this one."""
    try:
        private.make_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {path.parent} for the database: {error.strerror}; "
            "name another file with --db or KSEARCH_DB"
        ) from error
    with contextlib.suppress(OSError):  # what is wrong with it, SQLite says better
        private.make_file(path)

"""Short rows of a whole database, and of what has changed since, for who keeps an index of it in memory.

To read 100,000 winners takes 1 s; afterwards only what is new is read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Text, case, func, select, type_coerce

from ksearch.database import open_readonly
from ksearch.store import engine, queries
from ksearch.store.schema import EvaluationRow, TargetRow, WinnerRow, WorkloadRow
from ksearch.types import PREPACKED, Option, Target, Winner, Workload

if TYPE_CHECKING:
    from ksearch.store import Store

_AT_A_TIME = 500
"""Ids in one query; SQLite takes 32,766."""


@dataclass(slots=True)
class Listed:
    """A winner in force, without its evidence."""

    number: int
    """Of its row: a later winner has a larger one."""
    workload_key: str
    target_id: int
    op: str
    dims: tuple[int, ...]
    dtype: str
    mode: str
    """As `Workload.mode`."""
    options: tuple[tuple[str, Option], ...]
    is_kernel: bool
    """PyTorch won where it is not."""
    time_us: float
    baseline_us: float
    ceiling_us: float
    created: str


@dataclass(frozen=True, slots=True)
class Tried:
    """Candidates of one search, or of the part of it that was asked for."""

    workload_key: str
    target_id: int
    study: str
    trials: int
    last: int
    """Number of the row of the latest."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a search without a winner has come."""

    trials: int
    passed: int
    best_us: float | None
    """None where no candidate passed."""
    updated: str
    """When the last one was recorded: UTC, ISO 8601."""


class Listing:
    """Reads of an open store; threads may share it, but for `is_changed`."""

    def __init__(self, store: Store) -> None:
        """Raises StoreError."""
        self._store = store
        with engine.clear_errors(store.path):
            self._watch = open_readonly(store.path, 10.0)
        self._seen = -1

    def close(self) -> None:
        self._watch.close()

    def is_changed(self) -> bool:
        """Whether anything was committed since this was asked before; the first time, yes. Takes 20 us.

        Raises NewerSchema where that was by a newer ksearch.
        """
        with engine.clear_errors(self._store.path):
            (now,) = self._watch.execute("PRAGMA data_version").fetchone()
        if now == self._seen:
            return False
        self._store._check_version()
        self._seen = now
        return True

    def targets(self) -> dict[int, Target]:
        with self._store._read() as session:
            return {row.id: row.value() for row in session.scalars(select(TargetRow))}

    def winners(self, after: int = 0) -> list[Listed]:
        """Those in force, beyond the row of that number, oldest first."""
        w, n = WorkloadRow, WinnerRow
        mode = case((w.regime == PREPACKED, w.policy + f" {PREPACKED}"), else_=w.policy)
        columns = (
            n.id, n.workload_key, n.target_id, w.op, w.shape, w.inner, w.dtype, mode,
            type_coerce(w.options, Text), n.artifact_digest.is_not(None),
            n.time_us, n.baseline_us, n.ceiling_us, n.created,
        )  # fmt: skip
        query = select(*columns).join(w, w.key == n.workload_key).where(n.superseded.is_(None))
        if after:
            query = query.where(n.id > after)
        with self._store._read() as session:
            found = [
                Listed(number, key, target, op, _dims(shape, inner), dtype, mode, _options(options), *rest)
                for number, key, target, op, shape, inner, dtype, mode, options, *rest
                in session.execute(query)
            ]  # fmt: skip
        return sorted(found, key=lambda each: each.number)

    def check(self) -> tuple[int, int]:
        """How many winners are in force, and the sum of their numbers: equal where they are the same."""
        query = select(func.count(), func.coalesce(func.sum(WinnerRow.id), 0))
        with self._store._read() as session:
            count, total = session.execute(query.where(WinnerRow.superseded.is_(None))).one()
            return count, total

    def searches(self) -> list[Tried]:
        """Every search with its number of candidates: 1,000,000 of them take 0.15 s, from the index alone."""
        e = EvaluationRow
        place = (e.workload_key, e.target_id, e.study)
        with self._store._read() as session:
            return [
                Tried(*row)
                for row in session.execute(select(*place, func.count(), func.max(e.id)).group_by(*place))
            ]

    def tried(self, after: int) -> list[Tried]:
        """What was recorded beyond the row of that number, one by one."""
        e = EvaluationRow
        columns = (e.workload_key, e.target_id, e.study, e.id)
        query = select(*columns).where(e.id > after).order_by(e.id)
        with self._store._read() as session:
            return [
                Tried(key, target, study, 1, number) for key, target, study, number in session.execute(query)
            ]

    def recorded(self, numbers: Sequence[int]) -> dict[int, str]:
        """When the candidates of these rows were recorded."""
        query = select(EvaluationRow.id, EvaluationRow.created).where(EvaluationRow.id.in_(numbers))
        with self._store._read() as session:
            return {row.id: row.created for row in session.execute(query)}

    def standing(self, workload_key: str, target_key: str) -> Standing:
        e = EvaluationRow
        columns = (func.count(), func.count(e.time_us), func.min(e.time_us), func.max(e.created))
        there = select(TargetRow.id).where(TargetRow.key == target_key)
        query = select(*columns).where(e.workload_key == workload_key, e.target_id.in_(there))
        with self._store._read() as session:
            trials, passed, best_us, updated = session.execute(query).one()
            return Standing(trials, passed, best_us, updated or "")

    def full(self, numbers: Sequence[int]) -> dict[int, Winner]:
        """The whole winners of these rows, those that are still there."""
        found: dict[int, Winner] = {}
        with self._store._read() as session:
            for start in range(0, len(numbers), _AT_A_TIME):
                query = queries.winners().where(WinnerRow.id.in_(numbers[start : start + _AT_A_TIME]))
                found |= {row.id: row.value() for row in session.scalars(query)}
        return found

    def workload(self, key: str) -> Workload | None:
        with self._store._read() as session:
            row = session.get(WorkloadRow, key)
            return row.value() if row else None

    def workloads(self, keys: Sequence[str]) -> dict[str, Workload]:
        """Those of these keys."""
        found: dict[str, Workload] = {}
        with self._store._read() as session:
            for start in range(0, len(keys), _AT_A_TIME):
                query = select(WorkloadRow).where(WorkloadRow.key.in_(keys[start : start + _AT_A_TIME]))
                found |= {row.key: row.value() for row in session.scalars(query)}
        return found


@functools.lru_cache(maxsize=1 << 16)
def _dims(shape: str, inner: int) -> tuple[int, ...]:
    """As `Workload.dims` has them."""
    dims = tuple(map(int, shape.split("x"))) if shape else ()
    return (*dims[:-1], inner, dims[-1]) if inner else dims


@functools.lru_cache(maxsize=1 << 12)
def _options(text: str) -> tuple[tuple[str, Option], ...]:
    return tuple((str(name), value) for name, value in json.loads(text))

"""The union of databases and bundles: everything of each is kept, and of two winners the better is in force.

Better is the one whose speed-up over PyTorch is surely the larger: the lower end of its 95 % interval, 1
where PyTorch won or no interval is known. Of equals the one of the later ksearch and torch, then the one
promoted later. A winner that one side has replaced already, by tuning again, never comes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session, joinedload

from ksearch.store import queries
from ksearch.store.migrations import now
from ksearch.store.schema import ArtifactRow, EnvironmentRow, EvaluationRow, TargetRow, WinnerRow, WorkloadRow
from ksearch.store.values import StoredArtifact
from ksearch.types import Target, Winner, Workload, canonical_json, digest

_Place: TypeAlias = tuple[str, str]
"""A workload's key and a target's: one winner is in force for them."""

_Rank: TypeAlias = tuple[float, tuple[int, ...], tuple[int, ...], str, str]
"""How good a certificate is: the larger the better."""

_ROWS = 1000
"""Rows that are read from a file at a time."""


@dataclass(frozen=True, slots=True)
class Record:
    """A winner, in force or not, with what belongs to it."""

    winner: Winner
    environment: Mapping[str, str]
    superseded: str | None
    """When another took its place, UTC; None: it is in force."""
    artifact: Callable[[], StoredArtifact] | None
    """Reads it; None where PyTorch won."""


@dataclass(frozen=True, slots=True)
class Trial:
    """An evaluated candidate as its row keeps it."""

    workload: Workload
    target: Target
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two sides had different winners for the same workload on the same target."""

    kept: Winner
    dropped: Winner
    source: str
    """The side that was added when they met."""
    taken: bool
    """Whether it is that side's winner which was kept."""


@dataclass(frozen=True, slots=True)
class Added:
    """What one side brought."""

    source: str
    winners: int = 0
    """That are in force now, and were not there."""
    history: int = 0
    """Winners that are kept, and are not in force."""
    trials: int = 0
    known: int = 0
    """Winners that were there already."""
    conflicts: tuple[Conflict, ...] = ()


def records(session: Session) -> Iterator[Record]:
    """Every winner of a file: those that were replaced, the oldest first, then those in force."""
    for row in session.scalars(_everything()):
        versions = dict(row.environment.versions)
        yield Record(row.value(), versions, row.superseded, _reader(session, row.artifact_digest))


def _everything() -> Select[WinnerRow]:
    return (
        select(WinnerRow)
        .options(joinedload(WinnerRow.workload), joinedload(WinnerRow.target))
        .options(joinedload(WinnerRow.environment))
        .order_by(WinnerRow.superseded.is_(None), WinnerRow.id)
        .execution_options(yield_per=_ROWS)
    )


def _reader(session: Session, name: str | None) -> Callable[[], StoredArtifact] | None:
    def read() -> StoredArtifact:
        columns = select(ArtifactRow.source, ArtifactRow.binary, ArtifactRow.log)
        source, binary, log = session.execute(columns.where(ArtifactRow.digest == name)).one()
        return StoredArtifact(source, binary, log).of(name)

    return None if name is None else read


def trials(session: Session) -> Iterator[Trial]:
    """Every evaluated candidate of a file."""
    query = (
        select(EvaluationRow, WorkloadRow, TargetRow)
        .join(WorkloadRow, WorkloadRow.key == EvaluationRow.workload_key)
        .join(TargetRow, TargetRow.id == EvaluationRow.target_id)
        .order_by(EvaluationRow.id)
        .execution_options(yield_per=_ROWS)
    )
    links = ("id", "workload_key", "target_id")
    own = [column.name for column in EvaluationRow.__table__.columns if column.name not in links]
    for row, workload, target in session.execute(query):
        yield Trial(workload.value(), target.value(), {name: getattr(row, name) for name in own})


class Union:
    """Adds one side after the other to a file, inside one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._at = now()
        self._targets: dict[Target, int] = {}
        self._workloads: set[str] = set()
        self._environments: set[str] = set()
        self._artifacts = set(session.scalars(select(ArtifactRow.digest)))
        self._known: dict[str, int] = {}
        """Rows of winners by their identity."""
        self._in_force: dict[_Place, tuple[int, _Rank]] = {}
        """Their rows, and how good they are."""
        self._outdated: dict[_Place, str] = {}
        """Where the side that is being added has replaced the winner that is in force here, and when."""
        for row in session.scalars(_everything()):
            self._keep(row.id, Record(row.value(), row.environment.versions, row.superseded, None))

    def add(self, source: str, found: Iterable[Record], evaluated: Iterable[Trial] = ()) -> Added:
        """All of one side, which is called `source` from now on; `found` is as `records` gives it."""
        added = Added(source)
        self._outdated = {}
        for record in found:
            is_old = record.superseded is not None
            added = self._add_history(added, record) if is_old else self._add_in_force(added, record)
        return replace(added, trials=sum(self._add_trial(trial) for trial in evaluated))

    def _add_history(self, added: Added, record: Record) -> Added:
        number = self._known.get(_identity(record.winner))
        if number is None:
            self._insert(record)
            return replace(added, history=added.history + 1)
        current = self._in_force.get(_place(record.winner))
        if current is not None and current[0] == number:  # tuned again there: what follows takes its place
            self._outdated[_place(record.winner)] = record.superseded or self._at
        return replace(added, known=added.known + 1)

    def _add_in_force(self, added: Added, record: Record) -> Added:
        place, number = _place(record.winner), self._known.get(_identity(record.winner))
        if (replaced := self._outdated.pop(place, None)) is not None:
            self._supersede(place, replaced)
        if number is not None:
            if place not in self._in_force:  # here it had lost to the one that it replaced there
                self._reinstate(number, record)
            return replace(added, known=added.known + 1)
        current = self._in_force.get(place)
        if current is None:
            self._insert(record)
            return replace(added, winners=added.winners + 1)
        number, our_rank = current
        ours = self._session.get_one(WinnerRow, number).value()
        taken = _rank(record) > our_rank
        kept, dropped = (record.winner, ours) if taken else (ours, record.winner)
        conflicts = (*added.conflicts, Conflict(kept, dropped, added.source, taken))
        if taken:
            self._supersede(place, self._at)
            self._insert(record)
            return replace(added, winners=added.winners + 1, conflicts=conflicts)
        self._insert(replace(record, superseded=self._at))
        return replace(added, history=added.history + 1, conflicts=conflicts)

    def _supersede(self, place: _Place, at: str) -> None:
        number, _ = self._in_force.pop(place)
        self._session.execute(update(WinnerRow).where(WinnerRow.id == number).values(superseded=at))

    def _reinstate(self, number: int, record: Record) -> None:
        self._session.execute(update(WinnerRow).where(WinnerRow.id == number).values(superseded=None))
        self._in_force[_place(record.winner)] = number, _rank(record)

    def _insert(self, record: Record) -> None:
        winner, versions = record.winner, EnvironmentRow.of(record.environment)
        if versions.digest not in self._environments:
            self._session.merge(versions)
            self._environments.add(versions.digest)
        if record.artifact is not None and winner.artifact not in self._artifacts:
            stored = record.artifact()
            row = ArtifactRow(
                digest=winner.artifact, source=stored.source, binary=stored.binary, log=stored.log
            )
            self._session.add(row)
            self._session.flush()
            self._session.expunge(row)  # binaries of a large union would fill the memory
            self._artifacts.add(str(winner.artifact))
        new = WinnerRow.of(winner, *self._where(winner.workload, winner.target), versions)
        new.superseded = record.superseded
        self._session.add(new)
        self._session.flush()
        self._keep(new.id, record)
        self._session.expunge(new)

    def _keep(self, number: int, record: Record) -> None:
        self._known[_identity(record.winner)] = number
        if record.superseded is None:
            self._in_force[_place(record.winner)] = number, _rank(record)

    def _add_trial(self, trial: Trial) -> bool:
        """Whether it was not there, or only as it came out at an earlier time."""
        key, target = self._where(trial.workload, trial.target)
        row = self._session.scalar(
            select(EvaluationRow).where(
                EvaluationRow.workload_key == key,
                EvaluationRow.target_id == target,
                EvaluationRow.study == trial.fields["study"],
                EvaluationRow.config_digest == trial.fields["config_digest"],
            )
        )
        if row is None:
            self._session.add(EvaluationRow(workload_key=key, target_id=target, **trial.fields))
        elif row.created < trial.fields["created"]:
            for name, value in trial.fields.items():
                setattr(row, name, value)
        else:
            return False
        return True

    def _where(self, workload: Workload, target: Target) -> tuple[str, int]:
        """Of their rows, made where they are missing."""
        if workload.key not in self._workloads:
            self._workloads.add(queries.workload_key(self._session, workload))
        if target not in self._targets:
            self._targets[target] = queries.target_id(self._session, target)
        return workload.key, self._targets[target]


def _rank(record: Record) -> _Rank:
    winner, versions = record.winner, record.environment
    ksearch, torch = (_numbers(versions.get(name, "")) for name in ("ksearch", "torch"))
    return confirmed_speedup(winner), ksearch, torch, winner.created, winner.artifact or ""


def confirmed_speedup(winner: Winner) -> float:
    """The lower end of the interval of its speed-up; 1.0 where PyTorch won, or there is none."""
    interval = winner.certificate.get("speedup_ci")
    return float(interval[0]) if winner.artifact is not None and interval else 1.0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _place(winner: Winner) -> _Place:
    return winner.workload.key, winner.target.key


def _identity(winner: Winner) -> str:
    """The same for one promotion wherever its record went."""
    facts = (winner.config, winner.artifact, winner.time_us, winner.certificate, winner.created)
    return digest(canonical_json([*_place(winner), *facts]))

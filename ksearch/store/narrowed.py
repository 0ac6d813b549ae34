"""Winners and searches, narrowed, sorted and counted by the database itself.

The first fifty of 100,000 winners, in any order, take 0.08 s, as the index `winner_figures` holds all that
decides; to read every one of them with its evidence took a minute.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from ksearch.store import queries
from ksearch.store.schema import EvaluationRow, TargetRow, WinnerRow, WorkloadRow
from ksearch.types import PREPACKED, Target, Winner, Workload

if TYPE_CHECKING:
    from ksearch.store import Store

_AT_A_TIME = 500
"""Rows read by one query; SQLite takes 32,766 of their numbers."""

_Query = TypeVar("_Query", bound="Select[*tuple[Any, ...]]")

_BY_NAME: tuple[ColumnElement[Any], ...] = (
    WorkloadRow.op.expression,
    WorkloadRow.dtype.expression,
    WorkloadRow.policy.expression,
    WorkloadRow.cols.expression,
    WorkloadRow.rows.expression,
    WorkloadRow.inner.expression,
    WinnerRow.target_key.expression,
)
SORTS: Mapping[str, tuple[ColumnElement[Any], ...]] = {
    "op": _BY_NAME,
    "age": (WinnerRow.created.desc(),),
    "time": (WinnerRow.time_us.desc(),),
    "speedup": ((WinnerRow.baseline_us / WinnerRow.time_us).desc(),),
    "ceiling": (WinnerRow.ceiling_us / WinnerRow.time_us,),
    "gain": ((WinnerRow.time_us - WinnerRow.ceiling_us).desc(),),
}
"""By name; or first the youngest, the slowest, the fastest beside PyTorch, the farthest from its ceiling in
percent, and in microseconds."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked for; None is anything."""

    op: str | None = None
    """As it is kept in the database."""
    dims: tuple[int, ...] | None = None
    """`Workload.dims`."""
    dtype: str | None = None
    policy: str | None = None
    prepacked: bool | None = None
    device: str | None = None
    """A backend (`cuda:1` is `cuda`), or part of a device's name."""
    since: str | None = None
    """Recorded then or later: UTC, ISO 8601."""
    status: str | None = None
    """`winner`, or `baseline` where PyTorch won."""
    keys: frozenset[str] | None = None
    """`Workload.key` of those that count."""


@dataclass(frozen=True, slots=True)
class Searched:
    """A workload on a target that has candidates, with a winner or without."""

    workload: Workload
    target: Target
    counts: Mapping[str, int]
    """Candidates by status."""


def listed(store: Store, asked: Filter, sort: str = "op", limit: int | None = None) -> Iterator[Winner]:
    """Winners in force in that order, for tables: without launch, and of the evidence `speedup_ci` alone."""
    ids = _winners(select(WinnerRow.id), asked).order_by(*SORTS[sort], WinnerRow.id).limit(limit)
    with store._read() as session:
        numbers = session.scalars(ids).all()
        targets = {row.id: row.value() for row in session.scalars(select(TargetRow))}
        for start in range(0, len(numbers), _AT_A_TIME):
            chunk = numbers[start : start + _AT_A_TIME]
            found = {row[0]: row for row in session.execute(_brief(chunk))}
            for number in chunk:
                _, workload, target, interval, *facts = found[number]
                yield _winner(workload.value(), targets[target], interval, *facts)


def _brief(numbers: Sequence[int]) -> Select[Any]:
    return (
        select(
            WinnerRow.id,
            WorkloadRow,
            WinnerRow.target_id,
            func.json_extract(WinnerRow.certificate, "$.speedup_ci"),
            WinnerRow.config,
            WinnerRow.artifact_digest,
            WinnerRow.time_us,
            WinnerRow.baseline_us,
            WinnerRow.ceiling_us,
            WinnerRow.created,
        )
        .join(WinnerRow.workload)
        .where(WinnerRow.id.in_(numbers))
    )


def _winner(
    workload: Workload, target: Target, interval: str | None, config: Any, artifact: str | None, *facts: Any
) -> Winner:
    time_us, baseline_us, ceiling_us, created = facts
    return Winner(
        workload=workload,
        target=target,
        config=config,
        launch=None,
        artifact=artifact,
        time_us=time_us,
        baseline_us=baseline_us,
        ceiling_us=ceiling_us,
        certificate={} if interval is None else {"speedup_ci": json.loads(interval)},
        created=created,
    )


def total_gain_us(store: Store, asked: Filter) -> float:
    """What one call of each winner takes beyond its ceiling, together."""
    gain = func.sum(func.max(WinnerRow.time_us - WinnerRow.ceiling_us, 0.0))
    with store._read() as session:
        return session.scalar(_winners(select(gain).select_from(WinnerRow), asked)) or 0.0


def nearest(store: Store, workload: Workload, target: Target) -> Winner | None:
    """The winner there that is most like it: of the same op where there is one, of its dtype and size."""
    apart = func.abs(_elements() - math.prod(workload.dims))
    like = (WorkloadRow.dtype != workload.dtype, apart, WinnerRow.id)
    here = _winners(select(WinnerRow.id), Filter()).where(
        WinnerRow.target_key == target.key, (WorkloadRow.inner > 0) == (workload.inner > 0)
    )
    with store._read() as session:
        number = session.scalar(here.where(WorkloadRow.op == workload.op).order_by(*like).limit(1))
        if number is None:
            number = session.scalar(here.order_by(*like).limit(1))
        return None if number is None else session.get_one(WinnerRow, number).value()


def count(store: Store, asked: Filter | None = None) -> int:
    """Of the winners in force."""
    with store._read() as session:
        return session.scalar(_winners(select(func.count()).select_from(WinnerRow), asked or Filter())) or 0


def whole(store: Store, asked: Filter) -> list[Winner]:
    """Winners in force by name, with all their evidence."""
    query = queries.winners().where(*_of_place(asked), *_of_winner(asked)).order_by(*_BY_NAME)
    with store._read() as session:
        return [row.value() for row in session.scalars(query)]


def places(
    store: Store, asked: Filter, like: tuple[int, ...] | None, most: int
) -> list[tuple[Workload, Target]]:
    """What has a winner: first what is about as large as `Workload.dims` of `like`, or by name."""
    order = _BY_NAME if like is None else (func.abs(_elements() - math.prod(like)), *_BY_NAME)
    query = (
        _winners(select(WorkloadRow, TargetRow).select_from(WinnerRow), asked).order_by(*order).limit(most)
    )
    with store._read() as session:
        return [(workload.value(), target.value()) for workload, target in session.execute(query)]


def searched(store: Store, asked: Filter) -> list[Searched]:
    """What has candidates; `since` and `status` are not asked about."""
    place = (EvaluationRow.workload_key, EvaluationRow.target_id)
    counted = (
        select(*place, EvaluationRow.status, func.count())
        .join(WorkloadRow, WorkloadRow.key == EvaluationRow.workload_key)
        .join(TargetRow, TargetRow.id == EvaluationRow.target_id)
        .where(*_of_place(asked))
        .group_by(*place, EvaluationRow.status)
    )
    with store._read() as session:
        found: dict[tuple[str, int], Counter[str]] = {}
        for key, target, status, number in session.execute(counted):
            found.setdefault((key, target), Counter())[status] = number
        return sorted(
            (
                Searched(
                    session.get_one(WorkloadRow, key).value(),
                    session.get_one(TargetRow, target).value(),
                    counts,
                )
                for (key, target), counts in found.items()
            ),
            key=lambda each: (str(each.workload), each.target.key),
        )


def has_trials(store: Store) -> bool:
    """Whether any candidate was evaluated, of whatever."""
    with store._read() as session:
        return session.scalar(select(EvaluationRow.id).limit(1)) is not None


def ops(store: Store) -> list[str]:
    """The names of ops in the database, sorted."""
    with store._read() as session:
        return list(session.scalars(select(WorkloadRow.op).distinct().order_by(WorkloadRow.op)))


def targets(store: Store, device: str | None = None) -> list[Target]:
    """The devices in the database that `Filter.device` means, one for each key."""
    query = select(TargetRow).where(*_of_place(Filter(device=device)))
    with store._read() as session:
        return list({row.key: row.value() for row in session.scalars(query)}.values())


def _winners(query: _Query, asked: Filter) -> _Query:
    return (
        query.join(WorkloadRow, WorkloadRow.key == WinnerRow.workload_key)
        .join(TargetRow, TargetRow.id == WinnerRow.target_id)
        .where(WinnerRow.superseded.is_(None), *_of_place(asked), *_of_winner(asked))
    )


def _of_place(asked: Filter) -> Iterator[ColumnElement[bool]]:
    if asked.keys is not None:
        yield WorkloadRow.key.in_(asked.keys)
    if asked.op is not None:
        yield WorkloadRow.op == asked.op
    if asked.dims is not None:
        yield _has_dims(asked.dims)
    if asked.dtype is not None:
        yield WorkloadRow.dtype == asked.dtype
    if asked.policy is not None:
        yield WorkloadRow.policy == asked.policy
    if asked.prepacked is not None:
        is_prepacked = WorkloadRow.regime == PREPACKED
        yield is_prepacked if asked.prepacked else ~is_prepacked
    if asked.device is not None:
        part = func.instr(func.lower(TargetRow.device), asked.device.lower()) > 0
        yield or_(TargetRow.backend == asked.device.partition(":")[0], part)


def _of_winner(asked: Filter) -> Iterator[ColumnElement[bool]]:
    if asked.since is not None:
        yield WinnerRow.created >= asked.since
    if asked.status is not None:
        is_kernel = WinnerRow.artifact_digest.is_not(None)
        yield is_kernel if asked.status == "winner" else ~is_kernel


def _elements() -> ColumnElement[int]:
    """The product of `Workload.dims`."""
    return WorkloadRow.rows * WorkloadRow.cols * func.max(WorkloadRow.inner, 1)


def _has_dims(dims: tuple[int, ...]) -> ColumnElement[bool]:
    """The shape of a row is the full tensors'; of a linear `dims` have the inner one before the last."""
    plain = and_(WorkloadRow.inner == 0, WorkloadRow.shape == "x".join(map(str, dims)))
    if len(dims) < 3:
        return plain
    outer = "x".join(map(str, (*dims[:-2], dims[-1])))
    return or_(plain, and_(WorkloadRow.inner == dims[-2], WorkloadRow.shape == outer))

"""The queries and rows that several methods of the store share."""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, joinedload

from ksearch.store.schema import TargetRow, WinnerRow, WorkloadRow
from ksearch.types import Target, Workload


def workload_key(session: Session, workload: Workload) -> str:
    """Of its row, made where it is missing."""
    row = session.get(WorkloadRow, workload.key)
    if row is None:
        session.add(row := WorkloadRow.of(workload))
        session.flush()
    return row.key


def target_id(session: Session, target: Target) -> int:
    """Of its row, made where it is missing."""
    row = session.scalar(select(TargetRow).filter_by(**TargetRow.fields(target)))
    if row is None:
        session.add(row := TargetRow.of(target))
        session.flush()
    return row.id


def winners() -> Select[WinnerRow]:
    """The winners in force, with their workload and target read in the same query."""
    return (
        select(WinnerRow)
        .join(WinnerRow.workload)
        .join(WinnerRow.target)
        .options(joinedload(WinnerRow.workload), joinedload(WinnerRow.target))
        .where(WinnerRow.superseded.is_(None))
    )


def in_force(workload: Workload, target: Target) -> Select[WinnerRow]:
    """The winner in force for them, if any."""
    return winners().where(WinnerRow.workload_key == workload.key, WinnerRow.target_key == target.key)

"""How a database of an older ksearch becomes one of today's: numbered functions, each applied once.

Step n takes version n-1 to version n, in one transaction with its line in `ksearch_schema`. A file
without our tables (new, or Optuna's only) gets today's models at once, with every number recorded.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection, Engine, func, insert, inspect, select, text

from ksearch.database import check_schema
from ksearch.store.schema import Base, SchemaRow

Step: TypeAlias = Callable[[Connection], None]


def create_tables(connection: Connection) -> None:
    """Step 1: the tables of `ksearch.store.schema`; fails where another program has one of that name."""
    Base.metadata.create_all(connection, checkfirst=False)


def add_inner(connection: Connection) -> None:
    """Step 2: the features that a linear sums over; what was kept before had no linear."""
    connection.execute(text("ALTER TABLE workloads ADD COLUMN \"inner\" BIGINT DEFAULT '0' NOT NULL"))


def add_region(connection: Connection) -> None:
    """Step 3: an index to find other numbers of rows by: to look at 100,000 winners takes 0.1 s."""
    connection.execute(text('CREATE INDEX workload_region ON workloads (op, cols, "inner", dtype)'))


def add_figures_and_kills(connection: Connection) -> None:
    """Step 4: an index of what lists of winners are sorted and narrowed by; a table of kill tables."""
    connection.execute(
        text(
            "CREATE INDEX winner_figures ON winners (workload_key, target_key, target_id, artifact_digest, "
            "time_us, baseline_us, ceiling_us, created, superseded) WHERE superseded IS NULL"
        )
    )
    connection.execute(
        text(
            'CREATE TABLE kill_tables ("key" VARCHAR NOT NULL, op VARCHAR NOT NULL, facts JSON NOT NULL, '
            'target_key VARCHAR NOT NULL, kills JSON NOT NULL, created VARCHAR NOT NULL, PRIMARY KEY ("key"))'
        )
    )


STEPS: tuple[Step, ...] = (create_tables, add_inner, add_region, add_figures_and_kills)
"""Append, never edit (files have the earlier ones applied); `ksearch.database.SCHEMA_VERSION` counts them."""


def now() -> str:
    """UTC, ISO 8601, to the microsecond: winners promoted one after the other keep their order."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def version(connection: Connection) -> int:
    """Of the tables in the file; 0 where there are none of ours."""
    if not inspect(connection).has_table(SchemaRow.__tablename__):
        return 0
    return connection.scalar(select(func.max(SchemaRow.version))) or 0


def migrate(writer: Engine, steps: Sequence[Step] = STEPS) -> None:
    """Bring the file to version `len(steps)`. Raises NewerSchema, and touches nothing, where it is beyond.

    `writer` must take the write lock when a transaction begins, so that of two processes that open a
    file at once only one changes it.
    """
    with writer.begin() as connection:
        current = version(connection)
        check_schema(current, Path(str(writer.url.database)), len(steps))
        if current == 0:
            steps[0](connection)
            _record(connection, range(1, len(steps) + 1))
            return
    for number in range(current + 1, len(steps) + 1):
        with writer.begin() as connection:
            if version(connection) < number:  # else another process was quicker
                steps[number - 1](connection)
                _record(connection, [number])


def _record(connection: Connection, numbers: Iterable[int]) -> None:
    applied_at = now()
    connection.execute(insert(SchemaRow), [{"version": n, "applied_at": applied_at} for n in numbers])

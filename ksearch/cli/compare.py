"""`ksearch compare`: winners side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ksearch import env
from ksearch.cli.choosing import chosen
from ksearch.cli.parameters import db_option, of_several_workloads, tabular
from ksearch.cli.printing import print_json, print_rich, print_rows
from ksearch.cli.show import evidence
from ksearch.errors import UsageError

if TYPE_CHECKING:
    from ksearch.types import Winner

_MOST = 6
"""Columns that can still be read."""


@click.command()
@of_several_workloads
@tabular
@db_option
def compare(
    op: str,
    shapes: tuple[str, ...],
    dtypes: tuple[str, ...],
    policies: tuple[str, ...],
    prepacked: bool | None,
    options: tuple[tuple[str, str], ...],
    devices: tuple[str, ...],
    form: str | None,
    db: Path | None,
) -> None:
    """Put winners side by side, and mark what differs.

    --shape A --shape B compares those two; --dtype, --policy and --device may be given twice as well, then
    the first of each is for the first winner. One shape alone compares all that there is of it.
    """
    # SQLAlchemy and rich take 0.3 s, which `--help` need not pay
    from ksearch.report import comparison
    from ksearch.store import Store

    sides = _sides({"--shape": shapes, "--dtype": dtypes, "--policy": policies, "--device": devices})
    with Store.open(db or env.database_path(), create=False, readonly=True) as store:
        winners: list[Winner] = []
        for shape, dtype, policy, device in sides:
            assert shape is not None
            found = chosen(store, op, shape, dtype, policy, options, device, prepacked)
            if len(sides) > 1 and len(found) > 1:
                raise UsageError(f"{shape} means {len(found)} winners: {_listed(found)}; {_NARROW}")
            winners += found
        if len(winners) < 2:
            raise UsageError(
                f"there is one winner as asked, {_listed(winners)}: name another by a second --shape, "
                "--dtype, --policy or --device"
            )
        if len(winners) > _MOST:
            raise UsageError(
                f"that is {len(winners)} winners, {_MOST} at most: {_listed(winners)}; {_NARROW}"
            )
        rows = [evidence(store, winner, None) for winner in winners]
    if form == "json":
        print_json(comparison.comparison_row(rows))
        return
    facts = list(comparison.facts(winners, rows))
    if form:
        print_rows(comparison.fact_rows(facts), form)
    else:
        print_rich(comparison.table(facts))


_NARROW = "narrow it by --dtype, --policy, --prepacked or --plain, --option, --device"


def _sides(given: Mapping[str, Sequence[str]]) -> list[tuple[str | None, ...]]:
    """For each winner what was said of it: what was said once is for all. Raises click.UsageError."""
    count = max(len(values) for values in given.values())
    for name, values in given.items():
        if len(values) not in (0, 1, count):
            raise click.UsageError(
                f"{name} is given {len(values)} times, and another {count} times: give it once for all, or "
                "once for each."
            )
    columns: list[tuple[str | None, ...]] = [
        tuple(values) if len(values) == count else (*values, None)[:1] * count for values in given.values()
    ]
    return list(zip(*columns, strict=True))


def _listed(winners: Sequence[Winner]) -> str:
    return ", ".join(f"{winner.workload} on {winner.target.device}" for winner in winners[:8])

"""`ksearch list`: the winners in the database."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ksearch import env
from ksearch.cli.choosing import kept_as, other_names
from ksearch.cli.parameters import db_option, limit_option, narrowing, tabular
from ksearch.cli.printing import most_lines, print_rich, print_rows

if TYPE_CHECKING:
    from ksearch.store import Store
    from ksearch.store.narrowed import Filter

_SORTS = ("op", "age", "time", "speedup", "ceiling")


@click.command("list")
@narrowing
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="op",
    show_default=True,
    help="By name; or first the youngest, slowest, fastest beside PyTorch, farthest from the ceiling.",
)
@limit_option
@tabular
@db_option
def list_(
    op: str | None,
    dtype: str | None,
    device: str | None,
    since: str | None,
    status: str | None,
    sort: str,
    limit: int | None,
    form: str | None,
    db: Path | None,
) -> None:
    """List the winners in the database."""
    # SQLAlchemy and rich take 0.3 s, which `--help` need not pay
    from ksearch.report import rows, tables
    from ksearch.store import Store, narrowed

    path = db or env.database_path()
    if db is None and not path.exists():  # the default one, before anything was tuned, is just empty
        print_rows((), form) if form else _say(f"no winners in {path}; {_FIRST}")
        return
    asked = narrowed.Filter(op=op and kept_as(op), dtype=dtype, device=device, since=since, status=status)
    with Store.open(path, create=False, readonly=True) as store:
        most = most_lines(limit, form)
        found = narrowed.listed(store, asked, sort, most)
        if form:
            print_rows((rows.winner_row(winner, str(path)) for winner in found), form)
        elif shown := list(found):
            print_rich(tables.winners(shown, datetime.now(UTC)))
            total = len(shown) if len(shown) != most else narrowed.count(store, asked)
            if total > len(shown):
                _say(f"these are {len(shown)} of {total:,} winners; --limit 0 lists all")
        else:
            _say(_why_nothing(store, asked))


_FIRST = "to get one: ksearch tune OP --shape NxM"


def _say(text: str) -> None:
    print(f"ksearch: {text}", file=sys.stderr)


def _why_nothing(store: Store, asked: Filter) -> str:
    from ksearch.report import text
    from ksearch.store import narrowed

    if total := narrowed.count(store):
        other = other_names(store, asked.op)
        devices = ", ".join(sorted({target.device for target in narrowed.targets(store)}))
        return f"none of the {total:,} winners in {store.path} is as asked; " + (
            other or f"its ops: {', '.join(narrowed.ops(store))}; its devices: {devices}"
        )
    if begun := narrowed.searched(store, asked):
        listed = ", ".join(f"{each.workload} ({text.counts(each.counts)})" for each in begun[:8])
        return (
            f"no winners in {store.path} yet, though candidates were evaluated: {listed}; "
            "the same ksearch tune goes on, and ksearch trials OP --shape NxM shows them"
        )
    return f"no winners in {store.path}; {_FIRST}"

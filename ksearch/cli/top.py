"""`ksearch top`: where tuning would pay most."""

from __future__ import annotations

import sys
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

_LINES = 20
"""Of a table, where nobody says how many: the tail is not worth tuning."""


@click.command()
@click.argument("study", required=False, metavar="[STUDY]")
@narrowing
@limit_option
@tabular
@db_option
def top(
    study: str | None,
    op: str | None,
    dtype: str | None,
    device: str | None,
    since: str | None,
    status: str | None,
    limit: int | None,
    form: str | None,
    db: Path | None,
) -> None:
    """List where tuning would pay most.

    What could be gained is calls x (time - time of the ceiling), in microseconds.

    STUDY is a file that ksearch.capture wrote, with how often a program calls what; then what nothing was
    tuned for counts, too, with times estimated from the nearest winner. Without it, one call of every winner.
    """
    # SQLAlchemy and rich take 0.3 s, which `--help` need not pay; torch is imported only for a STUDY
    from ksearch import gains, study_file
    from ksearch import study as studies
    from ksearch.report import rows, tables, text
    from ksearch.store import Store, narrowed

    captured = None if study is None else study_file.read(studies.find(study))
    asked = narrowed.Filter(op=op and kept_as(op), dtype=dtype, device=device, since=since, status=status)
    most = _LINES if limit is None and not form else most_lines(limit, form)
    with Store.open(db or env.database_path(), create=False, readonly=True) as store:
        if captured is None:
            known = gains.of_winners(store, asked, most)
        else:
            known = gains.of_study(store, captured, asked)
        shown = known.found[:most]
        if form:
            print_rows(map(rows.gain_row, shown), form)
        elif shown:
            print_rich(tables.gains(shown, known.total_us))
        else:
            _say(f"nothing to gain is known in {store.path}: {_why_nothing(store, asked)}")
    if shown and not form:
        if len(shown) == most:
            _say(f"these are {most}, of {text.time_us(known.total_us)} us in all; --limit 0 lists all")
        if unknown := sum(gain.gain_us is None for gain in shown):
            _say(f"for {unknown} nothing comparable was measured on that device: tune one to get estimates")
    for reason in known.left_out:
        _say(f"left out: {reason}")


def _say(text: str) -> None:
    print(f"ksearch: {text}", file=sys.stderr)


def _why_nothing(store: Store, asked: Filter) -> str:
    from ksearch.store import narrowed

    total = narrowed.count(store)
    if not total:
        return "it has no winners yet; to get one: ksearch tune OP --shape NxM"
    return (
        other_names(store, asked.op)
        or f"of its {total:,} winners none that is asked for is below its ceiling"
    )

"""`ksearch trials`: every candidate of one workload."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ksearch import env
from ksearch.cli.choosing import searches
from ksearch.cli.parameters import db_option, limit_option, of_one_workload, one_of, since_option, tabular
from ksearch.cli.printing import most_lines, print_rich, print_rows

if TYPE_CHECKING:
    from ksearch.store import Evaluation


def _statuses() -> Iterable[str]:
    from ksearch.types import Status  # not for `--help`, see `one_of`

    return ("failed", *map(str, Status))


@click.command()
@of_one_workload
@since_option
@click.option(
    "--status",
    **one_of(_statuses),
    metavar="STATUS",
    help="Only passed, wrong, timeout, ...; failed: all that are not passed.",
)
@limit_option
@tabular
@db_option
def trials(
    op: str,
    shape: str,
    dtype: str | None,
    policy: str | None,
    prepacked: bool | None,
    options: tuple[tuple[str, str], ...],
    device: str | None,
    since: str | None,
    status: str | None,
    limit: int | None,
    form: str | None,
    db: Path | None,
) -> None:
    """List every evaluated candidate, fastest first. A search may have them before its winner."""
    # SQLAlchemy and rich take 0.3 s, which `--help` need not pay
    from ksearch.report import rows, tables
    from ksearch.store import Store

    listed: list[dict[str, Any]] = []
    is_asked, most = _filter(since, status), most_lines(limit, form)
    with Store.open(db or env.database_path(), create=False, readonly=True) as store:
        for place in searches(store, op, shape, dtype, policy, options, device, prepacked):
            workload, target = place.workload, place.target
            found = [each for each in store.evaluations(workload, target) if is_asked(each)]
            if form:
                listed += [rows.trial_row(each, workload, target) for each in found]
                continue
            print(f"{workload} on {target.device}")
            if found:
                print_rich(tables.trials(found, most))
            if remark := _remark(place.counts, len(found), most):
                print(f"ksearch: {remark}", file=sys.stderr)
    if form:
        print_rows(listed[:most], form)


def _filter(since: str | None, status: str | None) -> Callable[[Evaluation], bool]:
    from ksearch.types import Status

    def is_asked(each: Evaluation) -> bool:
        passed = each.outcome.status is Status.PASSED
        return (since is None or each.created >= since) and (
            status is None or (not passed if status == "failed" else each.outcome.status == status)
        )

    return is_asked


def _remark(counts: Mapping[str, int], found: int, most: int | None) -> str:
    """What the table does not say: that nothing passed, or that it is not all."""
    from ksearch.report import text
    from ksearch.types import Status

    total = sum(counts.values())
    if not total:
        return "there are no candidates: the winner came without them, out of a bundle"
    if Status.PASSED not in counts:
        return f"none of {total} candidates passed: {text.counts(counts)}"
    if not found:
        return f"none of {total} candidates is as asked: {text.counts(counts)}"
    if most is not None and found > most:
        return f"these are {most} of {found} candidates; --limit 0 lists all"
    return ""

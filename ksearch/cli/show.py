"""`ksearch show`: one winner with its evidence and its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ksearch import env, private
from ksearch.cli.choosing import chosen
from ksearch.cli.parameters import db_option, of_one_workload, tabular
from ksearch.cli.printing import print_json, print_rich, print_rows
from ksearch.errors import KsearchError

if TYPE_CHECKING:
    from ksearch.store import Store
    from ksearch.types import Winner


@click.command()
@of_one_workload
@click.option("--source", "with_source", is_flag=True, help="Print the kernel's source text, and only that.")
@tabular
@db_option
def show(
    op: str,
    shape: str,
    dtype: str | None,
    policy: str | None,
    prepacked: bool | None,
    options: tuple[tuple[str, str], ...],
    device: str | None,
    with_source: bool,
    form: str | None,
    db: Path | None,
) -> None:
    """Show one winner: its speed, config, evidence and source."""
    # SQLAlchemy and rich take 0.3 s, which `--help` need not pay
    from ksearch.report import summary
    from ksearch.store import Store

    shown: list[dict[str, Any]] = []
    with Store.open(db or env.database_path(), create=False, readonly=True) as store:
        for winner in chosen(store, op, shape, dtype, policy, options, device, prepacked):
            source = _source_file(store, winner)
            row = evidence(store, winner, source)
            shown.append(row)
            if form:
                continue
            if with_source:
                print(
                    Path(source).read_text()
                    if source
                    else f"// {winner.workload}: PyTorch won, there is no source"
                )
            else:
                print_rich(summary.shown(winner, row, default_db=str(env.database_path())))
    if form == "json":
        print_json(shown)
    elif form:
        print_rows(shown, form)


def evidence(store: Store, winner: Winner, source: str | None) -> dict[str, Any]:
    """Everything about a winner as one row; `source` is the path of its source."""
    from ksearch.report import rows

    place = (winner.workload, winner.target)
    return rows.shown_row(
        winner, store.evaluations(*place), store.environment(*place), source, str(store.path)
    )


def _source_file(store: Store, winner: Winner) -> str | None:
    """Path of the winner's source, written out of the database into the cache; None where PyTorch won."""
    stored = None if winner.artifact is None else store.artifact(winner.artifact)
    if stored is None or winner.artifact is None:
        return None
    suffix = "cu" if winner.target.backend == "cuda" else "cpp"
    try:
        folder = private.make_cache(env.cache_dir(), "sources")
        path = folder / f"{winner.workload.op}-{winner.artifact[:12]}.{suffix}"
        path.write_text(stored.source)
    except OSError as error:
        raise KsearchError(
            f"cannot write into the cache folder: {error.strerror or error} ({error.filename}); mend that, "
            "or point KSEARCH_CACHE_DIR elsewhere"
        ) from error
    return str(path)

"""`ksearch report`: the results as one file to look at, or as Markdown for a pull request."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ksearch import env, files
from ksearch.cli.parameters import db_option, json_flag, narrowing
from ksearch.cli.printing import print_json


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, resolve_path=True, dir_okay=False),
    metavar="FILE",
    help="Where to write: report.html, or report.md.",
)
@click.option("--markdown", is_flag=True, help="Write Markdown, to stdout where no file is named.")
@narrowing
@json_flag
@db_option
def report(
    output: Path | None,
    markdown: bool,
    op: str | None,
    dtype: str | None,
    device: str | None,
    since: str | None,
    status: str | None,
    as_json: bool,
    db: Path | None,
) -> None:
    """Write the results into one file that opens anywhere.

    It needs no network. It holds a table of the winners, and of each workload how the search converged, what
    its parameters do, why candidates failed, the samples of the final, the ceiling, the config and the
    source. As Markdown it is the table with a line for each workload, for a pull request.
    """
    markdown = markdown or (output is not None and output.suffix.lower() in (".md", ".markdown"))
    if output is None and (as_json or not markdown):
        raise click.UsageError("Say where to write: -o report.html, or -o report.md.")
    # SQLAlchemy, Optuna and torch take seconds to import, which `--help` need not pay.
    from ksearch.operators import canonical
    from ksearch.pages import contents
    from ksearch.pages.markdown import lines
    from ksearch.pages.static import html
    from ksearch.report import text
    from ksearch.store import Store
    from ksearch.store.narrowed import Filter

    path = db or env.database_path()
    asked = Filter(op=op and canonical(op), dtype=dtype, device=device, since=since, status=status)
    with Store.open(path, create=False, readonly=True) as store:
        found = contents.read(store, asked, default_db=str(env.database_path()))
        pieces = lines(found) if markdown else html(found)
        if output is None:
            sys.stdout.writelines(pieces)
            return
        files.write_text(output, pieces)
    size = output.stat().st_size
    if as_json:
        count = len(found.overview.rows)
        print_json({"report": str(output), "workloads": count, "bytes": size, "db": str(path)})
    else:
        print(f"{found.overview.summary}, written to {output} ({text.size(size)})")

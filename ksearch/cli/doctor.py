"""`ksearch doctor`: what this machine has for tuning, what is missing, and the command that mends it."""

from __future__ import annotations

from pathlib import Path

import click

from ksearch import env
from ksearch.cli.parameters import db_option, json_flag
from ksearch.cli.printing import print_json, print_rich


@click.command()
@json_flag
@db_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, db: Path | None) -> None:
    """Say what this machine has, lacks, and how to mend it.

    The exit status is 0 where this machine can tune on at least one backend.
    """
    # compiles two small kernels and imports torch: seconds that `--help` need not pay
    from ksearch import doctor as examination
    from ksearch.report import rows, tables

    diagnosis = examination.examine(db or env.database_path())
    if as_json:
        print_json(rows.diagnosis_row(diagnosis))
    else:
        print_rich(tables.findings(diagnosis.findings))
        print(f"\nthis machine can tune on: {', '.join(diagnosis.backends) or 'nothing yet, see above'}")
    ctx.exit(0 if diagnosis.backends else 1)

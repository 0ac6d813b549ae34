"""`ksearch ops`: what can be tuned by name, and what the search of one op may choose from."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from ksearch.cli import complete
from ksearch.cli.parameters import db_option, dtype, shape_help, tabular
from ksearch.cli.printing import print_json, print_rich, print_rows

# Imports inside the functions: to trace an op takes torch, 1.5 s, which `--help` need not pay.


@click.command()
@click.argument("name", required=False, metavar="[OP]", shell_complete=complete.ops_known)
@click.option("--shape", metavar="NxM", help=f"With OP: of what its parameters may be. {shape_help}")
@click.option("--dtype", **dtype, metavar="DTYPE", default="float32", show_default=True, help="The same.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Only that backend.  [default: both]")
@tabular
@db_option
def ops(
    name: str | None,
    shape: str | None,
    dtype: str,
    device: str | None,
    form: str | None,
    db: Path | None,  # noqa: ARG001  (every command takes --db)
) -> None:
    """List the ops that can be tuned by name, or tell all about OP.

    Of an OP these are its tensors and options, its families, and the parameters that a search chooses from.
    """
    from ksearch import operators
    from ksearch.report import choices, rows, tables

    backends = (device,) if device else choices.BACKENDS
    if name is None:
        if shape is not None:
            raise click.UsageError("--shape is for one op: ksearch ops OP --shape NxM.")
        found = [operators.get(each) for each in operators.names()]
        if form:
            of_families = functools.partial(choices.of_families, wanted=backends)
            print_rows(({**rows.op_row(op), "families": of_families(op)} for op in found), form)
        else:
            print_rich(tables.ops(found))
            print_rich(choices.families_table(found, backends))
        return
    op = operators.resolve(name)
    spaces = choices.spaces(op, backends, None if shape is None else operators.parse_shape(shape), dtype)
    if form == "json":
        print_json({**rows.op_row(op), "families": [each.row() for each in spaces]})
    elif form:
        print_rows((row for each in spaces for row in each.parameter_rows(op.name)), form)
    else:
        print_rich(choices.described(op, spaces))

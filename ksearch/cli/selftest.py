"""`ksearch selftest`: is the check to be trusted? Wrong kernels are planted, and it must find each."""

from __future__ import annotations

from pathlib import Path

import click

from ksearch import env
from ksearch.cli.parameters import (
    db_option,
    json_flag,
    options_option,
    policy_help,
    prepacked_help,
    shape_help,
)
from ksearch.cli.printing import print_json, print_rich


@click.command()
@click.argument("op", required=False)
@click.option("--shape", metavar="NxM", help=f"{shape_help}  [default: small ones]")
@click.option("--dtype", default="float32", show_default=True, help="float32, float16 or bfloat16.")
@click.option("--policy", default="strict", show_default=True, help=policy_help)
@click.option("--prepacked", is_flag=True, help=prepacked_help)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@options_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the inputs.")
@json_flag
@db_option
@click.pass_context
def selftest(
    ctx: click.Context,
    op: str | None,
    shape: str | None,
    dtype: str,
    policy: str,
    prepacked: bool,
    device: str,
    options: tuple[tuple[str, str], ...],
    seed: int,
    as_json: bool,
    db: Path | None,
) -> None:
    """Plant wrong kernels, and print what the check makes of each.

    Those of OP, or of an op of each family. Where all are found the tables are kept in the database, and
    `tune` need not make them again.

    The exit status is 1 where one is not found.
    """
    if op is None and (shape or options or prepacked):
        raise click.UsageError("--shape, --prepacked and --option are for a named OP.")
    # torch, and compilers: seconds that `--help` need not pay
    from ksearch.operators import parse_shape, resolve
    from ksearch.report import selftest as report
    from ksearch.selftest.alone import Tried
    from ksearch.selftest.alone import selftest as try_faults
    from ksearch.selftest.gate import is_clean
    from ksearch.store import Store

    def tell(tried: Tried) -> None:
        if not as_json:
            print(report.heading(tried))
            print_rich(report.table(tried))
            print()

    found = try_faults(
        op,
        None if shape is None else parse_shape(shape),
        dtype=dtype,
        policy=policy,
        prepacked=prepacked,
        device=None if device == "auto" else device,
        options={} if op is None else {name: resolve(op).parse_option(name, text) for name, text in options},
        seed=seed,
        tell=tell,
    )
    with Store.open(db or env.database_path()) as store:
        for tried in found:
            if is_clean(tried.table):
                store.keep_kills(tried.table)
    if as_json:
        print_json(report.selftest_row(found, op))
    else:
        print(report.summary(found))
    ctx.exit(0 if all(is_clean(tried.table) for tried in found) else 1)

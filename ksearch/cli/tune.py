"""`ksearch tune`: search on one workload, then say what was found."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from ksearch import env
from ksearch.cli.parameters import db_option, json_flag, options_option, seconds
from ksearch.cli.printing import console, print_json, print_rich


@click.command()
@click.argument("op")
@click.option("--shape", required=True, metavar="NxM", help="Shape of the op's first input: 4096x8192.")
@click.option("--dtype", default="float32", show_default=True, help="float32, float16 or bfloat16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help="Candidates to evaluate at most.  [default: 200 on a GPU, 50 on a CPU]",
)
@click.option("--budget", "budget_s", type=seconds, metavar="TIME", help="Time to search: 60s, 5m, 1h.")
@click.option(
    "--sampler", type=click.Choice(["tpe", "random", "exhaustive"]), default="tpe", show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampler and of the inputs.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.  [default: by the cores]")
@options_option
@click.option("-v", "--verbose", count=True, help="-v: what happens; -vv: everything, and tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="One line of result, no progress.")
@click.option("--no-progress", is_flag=True, help="No moving line.")
@json_flag
@db_option
def tune(
    op: str,
    shape: str,
    dtype: str,
    device: str,
    trials: int | None,
    budget_s: float | None,
    sampler: str,
    seed: int,
    jobs: int | None,
    options: tuple[tuple[str, str], ...],
    verbose: int,
    quiet: bool,
    no_progress: bool,
    as_json: bool,
    db: Path | None,
) -> None:
    """Search for the fastest kernel of OP, and keep it.

    OP is a name that `ksearch ops` lists, or a function of your own: my_ops.py:swish. Ctrl-C ends the
    search early and keeps what was measured; the same command again goes on from there.
    """
    logging.getLogger("ksearch").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    # 2 s of torch and Optuna: only for those who tune
    from ksearch import tuner
    from ksearch.operators import parse_shape, resolve
    from ksearch.report import progress, rows, summary

    with progress.shown(console(stderr=True), enabled=not (as_json or quiet or no_progress)) as callback:
        report = tuner.tune(
            op,
            parse_shape(shape),
            dtype=dtype,
            device=None if device == "auto" else device,
            options={name: resolve(op).parse_option(name, text) for name, text in options},
            trials=trials,
            budget_s=budget_s,
            sampler=sampler,
            seed=seed,
            jobs=jobs,
            db=db,
            progress=callback,
        )
    if as_json:
        print_json(rows.tuned_row(report))
    elif quiet:
        print(summary.one_line(report.winner))
    else:
        print_rich(summary.tuned(report, op, default_db=str(env.database_path())))

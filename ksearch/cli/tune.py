"""`ksearch tune`: search on one workload, or on those of a study, then say what was found."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import click

from ksearch import env
from ksearch.cli import complete
from ksearch.cli.parameters import (
    db_option,
    json_flag,
    options_option,
    policy_help,
    prepacked_help,
    seconds,
    shape_help,
)
from ksearch.cli.printing import console, print_json, print_rich
from ksearch.cli.study import tune_study


@click.command()
@click.argument("op", required=False, shell_complete=complete.ops_known)
@click.option("--shape", metavar="NxM", help=shape_help)
@click.option("--dtype", default="float32", show_default=True, help="float32, float16 or bfloat16.")
@click.option("--policy", default="strict", show_default=True, help=policy_help)
@click.option("--prepacked", is_flag=True, help=prepacked_help)
@click.option(
    "--study",
    "study",
    metavar="FILE",
    help="Tune all workloads of a TOML file, or of a study that ships: named, llm, linear, kernelbench.",
)
@click.option("--again", is_flag=True, help="With --study: also what this study has a winner for.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help="Candidates to evaluate at most.  [default: 200 on a GPU, 50 on a CPU]",
)
@click.option(
    "--budget",
    "budget_s",
    type=seconds,
    metavar="TIME",
    help="Time to search: 60s, 5m, 1h; of a whole study.",
)
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random", "exhaustive"]),
    default="tpe",
    show_default=True,
    help="What proposes candidates: a model of those before, chance, or all in their order.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampler and of the inputs.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.  [default: by the cores]")
@click.option(
    "--no-early-stop", is_flag=True, help="Search to the end of --trials or --budget, whatever was found."
)
@click.option(
    "--sanitize", is_flag=True, help="Run finalists under compute-sanitizer, which must be installed."
)
@options_option
@click.option("-v", "--verbose", count=True, help="-v: what happens; -vv: everything, and tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="One line a workload, no progress.")
@click.option("--no-progress", is_flag=True, help="No moving line.")
@json_flag
@db_option
@click.pass_context
def tune(
    ctx: click.Context,
    op: str | None,
    shape: str | None,
    dtype: str,
    policy: str,
    prepacked: bool,
    study: str | None,
    again: bool,
    device: str,
    trials: int | None,
    budget_s: float | None,
    sampler: str,
    seed: int,
    jobs: int | None,
    no_early_stop: bool,
    sanitize: bool,
    options: tuple[tuple[str, str], ...],
    verbose: int,
    quiet: bool,
    no_progress: bool,
    as_json: bool,
    db: Path | None,
) -> None:
    """Search for the fastest kernel of OP, and keep it. With --study: of each workload of a study.

    OP is a name that `ksearch ops` lists, or a function of your own: my_ops.py:swish. Ctrl-C ends the
    search early and keeps what was measured; the same command again goes on from there.

    The exit status of a study is 0 where every workload that can be tuned has a winner, 1 where one failed
    or was not reached, 130 where Ctrl-C ended it before.
    """
    _check_which(ctx, op, shape, study, again)
    logging.getLogger("ksearch").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    # 2 s of torch and Optuna: only for those who tune
    from ksearch import tuner
    from ksearch.operators import parse_shape, resolve
    from ksearch.report import progress, rows, summary

    search = functools.partial(
        tuner.tune, sampler=sampler, seed=seed, jobs=jobs, early_stop=not no_early_stop, sanitize=sanitize
    )
    if study is not None:
        status = tune_study(
            study,
            search=search,
            quiet=quiet,
            no_progress=no_progress,
            as_json=as_json,
            device=None if device == "auto" else device,
            trials=trials,
            budget_s=budget_s,
            again=again,
            db=db,
        )
        ctx.exit(status)
    assert op is not None
    assert shape is not None
    with progress.shown(console(stderr=True), enabled=not (as_json or quiet or no_progress)) as callback:
        report = search(
            op,
            parse_shape(shape),
            dtype=dtype,
            policy=policy,
            prepacked=prepacked,
            device=None if device == "auto" else device,
            options={name: resolve(op).parse_option(name, text) for name, text in options},
            trials=trials,
            budget_s=budget_s,
            db=db,
            progress=callback,
        )
    if as_json:
        print_json(rows.tuned_row(report))
    elif quiet:
        print(summary.one_line(report.winner))
    else:
        print_rich(summary.tuned(report, op, default_db=str(env.database_path())))


def _check_which(
    ctx: click.Context, op: str | None, shape: str | None, study: str | None, again: bool
) -> None:
    """One workload, or a study: what says more about the one has no place beside the other."""
    if study is None:
        if op is None:
            raise click.UsageError("Missing argument 'OP', or --study FILE for many workloads.")
        if shape is None:
            raise click.UsageError(
                "Missing option '--shape' of the op's first input, such as --shape 4096x8192."
            )
        if again:
            raise click.UsageError("--again is for a study: without --study every workload is tuned again.")
        return
    named = ("op", "shape", "dtype", "policy", "prepacked", "options")
    stated = [name for name in named if _is_stated(ctx, name)]
    if stated:
        names = {"op": "OP", "options": "--option"}
        given = ", ".join(names.get(name, f"--{name}") for name in stated)
        raise click.UsageError(f"--study names its own workloads: leave out {given}, or --study.")


def _is_stated(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

"""Tables for the terminal: winners, trials, ops, studies."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ksearch.report import study as wording
from ksearch.report import text
from ksearch.report.grid import Column, Grid
from ksearch.types import Target, Winner, Workload

if TYPE_CHECKING:
    from ksearch.doctor import Finding
    from ksearch.gains import Gain
    from ksearch.operators import Op
    from ksearch.store import Evaluation
    from ksearch.study_run import StudyReport


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    right = set(right)
    for column in columns:
        # Cut what is long by folding, never by dots: a device or message that ends in dots cannot be copied.
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


_PLACE = (
    Column("op", folds=18),
    Column("shape"),
    Column("dtype", rank=2),
    Column("policy", rank=6),
    Column("device", rank=3, folds=14),
)


def _place(workload: Workload, target: Target) -> tuple[str, ...]:
    options = "".join(f" {name}={value}" for name, value in workload.options)
    return workload.op + options, workload.shape_text, workload.dtype, workload.mode, target.device


def winners(found: Iterable[Winner], now: datetime) -> Grid:
    """One line a winner; where PyTorch won, it says so instead of a config."""
    grid = Grid(
        *_PLACE,
        Column("us", right=True),
        Column("times PyTorch", right=True),
        Column("% of ceiling", right=True),
        Column("age", right=True, rank=5),
        Column("config", rank=4, folds=24),
    )
    for winner in found:
        grid.add(
            *_place(winner.workload, winner.target),
            text.time_us(winner.time_us),
            text.times(winner.speedup),
            text.percent(winner.percent_of_ceiling),
            text.age(winner.created, now),
            text.config(winner.config),
            style="dim" if winner.config is None else "",
        )
    return grid


_RUNS = {"kernel": "kernel", "pytorch": "PyTorch won", "untuned": "not tuned, estimated"}


def gains(found: Iterable[Gain], total_us: float) -> Grid:
    """One line for each workload on a device: what all its calls would gain at the ceiling."""
    grid = Grid(
        *_PLACE,
        Column("calls", right=True, rank=5),
        Column("us", right=True),
        Column("ceiling us", right=True, rank=1),
        Column("% of ceiling", right=True, rank=4),
        Column("us to gain", right=True),
        Column("share", right=True),
        Column("runs now"),
    )
    for gain in found:
        grid.add(
            *_place(gain.workload, gain.target),
            f"{gain.calls:,}",
            text.time_us(gain.time_us),
            text.time_us(gain.ceiling_us),
            text.percent(gain.percent_of_ceiling),
            text.time_us(gain.gain_us),
            f"{100 * gain.gain_us / total_us:.1f} %" if total_us and gain.gain_us is not None else "-",
            _RUNS[gain.state],
            style="" if gain.state == "kernel" else "yellow",
        )
    return grid


def trials(found: Iterable[Evaluation], most: int | None = None) -> Grid:
    """Candidates: the fastest first, then the failed, in order of trial; the first `most` of all these."""
    grid = Grid(
        Column("trial", right=True),
        Column("status"),
        Column("us", right=True),
        Column("spread", right=True, rank=1),
        Column("config", folds=24),
        Column("message", rank=2, folds=24),
    )
    for evaluation in sorted(found, key=_by_speed)[:most]:
        outcome = evaluation.outcome
        failed = outcome.time_us is None
        grid.add(
            str(evaluation.number),
            Text(str(outcome.status), style="red" if failed else ""),
            text.time_us(outcome.time_us),
            "-" if failed else text.time_us(outcome.spread_us),
            text.config(evaluation.config),
            outcome.message,
        )
    return grid


def _by_speed(evaluation: Evaluation) -> tuple[float, int]:
    time_us = evaluation.outcome.time_us
    return (float("inf") if time_us is None else time_us), evaluation.number


def ops(found: Iterable[Op]) -> Grid:
    """One line an op, with the roles that each of its tensors may have."""
    grid = Grid(Column("op"), Column("family"), Column("inputs", folds=20), Column("options", folds=16))
    for op in found:
        inputs = ", ".join(f"{item.name} ({'|'.join(op.roles(item))})" for item in op.inputs)
        options = ", ".join(f"{name}={value}" for name, value in op.options.items())
        grid.add(op.name, op.program().family, inputs, options or "-")
    return grid


_STATES = {"tuned": "green", "failed": "bold red", "left": "yellow", "had": "dim", "needs": "dim"}


def study(report: StudyReport) -> Table:
    """One line for each workload of a study, in the order of its file."""
    numbers = ("us", "times PyTorch", "% of ceiling", "candidates", "time")
    table = _table("workload", *numbers, "status", right=numbers)
    for result in report.results:
        winner = result.winner
        table.add_row(
            Text(str(result.entry)),
            text.time_us(winner.time_us if winner else None),
            text.times(winner.speedup if winner else None),
            text.percent(winner.percent_of_ceiling if winner else None),
            str(result.trials or "-"),
            text.duration(result.elapsed_s) if result.elapsed_s else "-",
            Text(wording.status(result), style=_STATES.get(result.state, "")),
        )
    return table


_COLOURS = {"ok": "green", "absent": "dim", "missing": "bold red"}


def findings(found: Iterable[Finding]) -> Table:
    """What the doctor saw; under each lack the command that mends it."""
    table = _table("what", "state", "found")
    for finding in found:
        detail = Text(finding.detail)
        if finding.fix:
            detail.append(f"\n-> {finding.fix}", style="bold" if finding.state == "missing" else "")
        table.add_row(finding.name, Text(finding.state, style=_COLOURS[finding.state]), detail)
    return table

"""Tables for the terminal: winners, trials, ops, studies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ksearch.report import study as wording
from ksearch.report import text
from ksearch.types import Winner

if TYPE_CHECKING:
    from ksearch.doctor import Finding
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


def winners(found: Sequence[Winner]) -> Table:
    """One line a winner; where PyTorch won, it says so instead of a config."""
    numbers = ("us", "times PyTorch", "% of ceiling")
    table = _table("op", "shape", "dtype", "policy", "device", *numbers, "config", right=numbers)
    for winner in found:
        workload = winner.workload
        options = "".join(f" {name}={value}" for name, value in workload.options)
        table.add_row(
            Text(workload.op + options),
            workload.shape_text,
            workload.dtype,
            workload.policy,
            Text(winner.target.device),
            text.time_us(winner.time_us),
            text.times(winner.speedup),
            text.percent(winner.percent_of_ceiling),
            Text(text.config(winner.config)),
        )
    return table


def trials(found: Sequence[Evaluation]) -> Table:
    """Every evaluated candidate: the fastest first, then the failed, in order of trial."""
    table = _table("trial", "status", "us", "spread", "config", "message", right=("trial", "us", "spread"))

    def rank(evaluation: Evaluation) -> tuple[float, int]:
        time_us = evaluation.outcome.time_us
        return (float("inf") if time_us is None else time_us), evaluation.number

    for evaluation in sorted(found, key=rank):
        outcome = evaluation.outcome
        table.add_row(
            str(evaluation.number),
            str(outcome.status),
            text.time_us(outcome.time_us),
            text.time_us(outcome.spread_us) if outcome.time_us is not None else "-",
            Text(text.config(evaluation.config)),
            Text(outcome.message),
        )
    return table


def ops(found: Iterable[Op]) -> Table:
    table = _table("op", "family", "inputs", "options")
    for op in found:
        inputs = ", ".join(f"{item.name} ({'|'.join(op.roles(item))})" for item in op.inputs)
        options = ", ".join(f"{name}={value}" for name, value in op.options.items())
        table.add_row(Text(op.name), op.program().family, Text(inputs), Text(options or "-"))
    return table


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

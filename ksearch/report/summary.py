"""What a person reads after tuning, and of one winner: how fast, how sure, how to use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ksearch import operators
from ksearch.certificate import Certificate, disturbances
from ksearch.errors import KsearchError
from ksearch.operators.program import Role
from ksearch.operators.signature import NONE
from ksearch.report import certificate, text
from ksearch.types import Winner, Workload

if TYPE_CHECKING:
    from ksearch.tuner import Report

_SHOWN_S = 0.05
"""Phases that took less are none that anyone would look into."""


def tuned(report: Report, op: str, *, default_db: str) -> RenderableType:
    """The result of one run; `op` as the user named it, so that the Python lines load it the same way."""
    winner = report.winner
    facts = _facts()
    _add_certainty(facts, winner)
    facts.add_row("config", Text(text.config(winner.config)))
    facts.add_row("tried", f"{_tried(report.trials, report.failures)}; ended: {report.ended}")
    for status, message in report.first_failures.items():
        facts.add_row("", Text(f"first {status}: {message}"))
    long = {name: seconds for name, seconds in report.phases_s.items() if seconds >= _SHOWN_S}
    phases = ", ".join(f"{name} {text.duration(seconds)}" for name, seconds in long.items())
    facts.add_row("took", text.duration(report.elapsed_s) + (f": {phases}" if phases else ""))
    facts.add_row("stored", Text(report.db))
    return Group(
        _heading(winner),
        "",
        _comparison(winner),
        "",
        facts,
        "",
        Text(snippet(winner, op, report.db, default_db)),
    )


def shown(winner: Winner, row: Mapping[str, Any], *, default_db: str) -> RenderableType:
    """One winner with its evidence; `row` is its `rows.shown_row`."""
    facts = _facts()
    _add_certainty(facts, winner)
    facts.add_row("config", Text(text.config(winner.config)))
    if winner.launch is not None:
        facts.add_row("launch", Text(text.launch(winner.launch)))
    if row["source"] is not None:
        facts.add_row("source", Text(row["source"]))
    facts.add_row("tried", _tried(row["trials"], row["failures"]))
    facts.add_row("found", Text(f"{winner.created or 'at an unknown time'}, stored in {row['db']}"))
    parts: list[RenderableType] = [_heading(winner), "", _comparison(winner), "", facts, ""]
    if evidence := certificate.lines(winner, row["environment"]):
        table = _facts()
        for name, said in evidence:
            table.add_row(name, Text(said))
        parts += [Text("certificate", style="bold"), table, ""]
    return Group(*parts, Text(snippet(winner, winner.workload.op, row["db"], default_db)))


def one_line(winner: Winner) -> str:
    """`softmax 2048x4096 float32: 1,240 us, 1.52x PyTorch, 86 % of the ceiling`."""
    return (
        f"{winner.workload}: {text.time_us(winner.time_us)} us, {text.times(winner.speedup)} PyTorch, "
        f"{text.percent(winner.percent_of_ceiling)} of the ceiling"
        + (" (PyTorch itself)" if winner.config is None else "")
    )


def snippet(winner: Winner, op: str, db: str, default_db: str) -> str:
    """The lines of Python that load the winner and run it."""
    workload = winner.workload
    more = "" if workload.policy == "strict" else f", policy={workload.policy!r}"
    more += ", prepacked=weight" if workload.is_prepacked else ""
    more += "".join(f", {name}={_python(value)}" for name, value in workload.options)
    if db != default_db:
        more += f", db={db!r}"
    name = workload.op if workload.op.isidentifier() else "kernel"
    return (
        "import ksearch, torch\n"
        f"{name} = ksearch.load({op!r}, shape={workload.dims!r}, dtype=torch.{workload.dtype}, "
        f"device={winner.target.backend!r}{more})\n"
        f"y = {name}({_tensors(op, workload)})"
    )


def _tensors(op: str, workload: Workload) -> str:
    """What the op is called with: `x, weight`; an op that cannot be found here has one tensor at least."""
    roles = dict(workload.options)  # not of `inputs_for`, which traces the op: torch takes 1.5 s to import
    try:
        inputs = [item for item in operators.resolve(op).inputs if roles.get(item.name) != NONE]
        kept = workload.is_prepacked  # the handle has the weight
        return ", ".join(item.name for item in inputs if not (kept and item.role is Role.RIGHT))
    except KsearchError:
        return "x"


def _python(value: object) -> str:
    """`value` as a line of Python has it, which knows no word `inf`."""
    return f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def _facts() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _heading(winner: Winner) -> Text:
    heading = Text(str(winner.workload), style="bold")
    return heading.append(f" on {winner.target.device} ({winner.target.arch})", style="default not bold")


def _comparison(winner: Winner) -> Table:
    """What was found, PyTorch, and the machine's ceiling, side by side."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("")
    for column in ("us", "times PyTorch", "% of ceiling"):
        table.add_column(column, justify="right")

    def row(name: str, time_us: float, style: str = "") -> None:
        table.add_row(
            name,
            text.time_us(time_us),
            text.times(winner.baseline_us / time_us) if time_us else "-",
            text.percent(100 * winner.ceiling_us / time_us) if time_us else "-",
            style=style,
        )

    if winner.config is not None:
        row("ksearch", winner.time_us, "bold green")
    row("PyTorch", winner.baseline_us)
    row("ceiling (copy or product)" if winner.workload.inner else "ceiling (copy)", winner.ceiling_us)
    return table


def _add_certainty(facts: Table, winner: Winner) -> None:
    low, high = winner.certificate.get("speedup_ci") or (None, None)
    interval = f"{text.times(low)} to {text.times(high)} the speed of PyTorch, with 95 % confidence"
    if winner.config is None:
        facts.add_row("result", "nothing found surely beats PyTorch, so PyTorch is what load() will run")
        if low is not None:
            facts.add_row("nearest", interval)
    elif low is not None:
        facts.add_row("sure", interval)
    if alarm := winner.certificate.get("alarm"):
        facts.add_row(Text("alarm", style="bold red"), Text(alarm))
    conditions = Certificate.read(winner.certificate).conditions or ()
    if disturbed := disturbances(conditions, winner.target):
        said = f"{', '.join(disturbed)} while it was measured"
        facts.add_row(Text("busy", style="yellow"), Text(said))


def _tried(trials: int, failures: Mapping[str, int]) -> str:
    failed = sum(failures.values())
    return f"{text.many(trials, 'candidate')}, " + (
        f"{failed} failed: {text.counts(failures)}" if failed else "none failed"
    )

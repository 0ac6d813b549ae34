"""Kill tables for people, and as the one object that `--json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ksearch.report.grid import Column, Grid
from ksearch.report.rows import workload_row

if TYPE_CHECKING:
    from ksearch.selftest.alone import Tried


def table(tried: Tried) -> Grid:
    """One line a fault: what it is, and what the check said."""
    from ksearch.selftest.mutants import descriptions  # it imports what compiles and runs

    about = descriptions()
    found = Grid(
        Column("fault"),
        Column("verdict"),
        Column("in the check's words", folds=30),
        Column("what is wrong", rank=1, folds=30),
    )
    for kill in tried.table.kills:
        style = {"": "dim", "passed": "bold red"}.get(kill.verdict, "green")
        verdict = {"": "does not apply", "passed": "SURVIVED"}.get(kill.verdict, kill.verdict)
        found.add(kill.fault, Text(verdict, style=style), kill.message, about[kill.fault])
    return found


def heading(tried: Tried) -> str:
    return f"{tried.workload} on {tried.device}"


def summary(all_tried: Sequence[Tried]) -> str:
    """How many faults were found, and which were not."""
    row = selftest_row(all_tried, None)
    said = f"{row['killed']} of {row['mutants']} planted faults found"
    return f"{said}; NOT FOUND: {', '.join(row['survivors'])}" if row["survivors"] else said


def selftest_row(all_tried: Sequence[Tried], op: str | None) -> dict[str, Any]:
    """All that was tried as one object; `op` as it was asked for, None for those of each family."""
    tables = [tried.table for tried in all_tried]
    return {
        "op": op,
        "device": all_tried[0].device if all_tried else None,
        "mutants": sum(len(each.applied) for each in tables),
        "killed": sum(each.killed for each in tables),
        "survivors": [
            f"{fault} ({tried.workload})" if op is None else fault
            for tried in all_tried
            for fault in tried.table.survivors
        ],
        "workloads": [_workload_row(tried) for tried in all_tried],
    }


def _workload_row(tried: Tried) -> dict[str, Any]:
    return {
        **workload_row(tried.workload),
        "faults": [
            {"fault": kill.fault, "verdict": kill.verdict or "does not apply", "message": kill.message}
            for kill in tried.table.kills
        ],
    }

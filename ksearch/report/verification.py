"""What verifying found, as dictionaries for `--json` and as lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.text import Text

from ksearch.report import text
from ksearch.report.rows import winner_row
from ksearch.verdicts import State, Verified

_COLOURS = {State.HOLDS: "green", State.BROKEN: "bold red", State.SLOWER: "yellow", State.LEFT: "dim"}


def report_row(found: Sequence[Verified], source: str, status: int) -> dict[str, Any]:
    """All of it, as `ksearch verify --json` prints it."""
    return {
        "source": source,
        "exit_status": status,
        "states": _counts(found),
        "winners": [_row(each, source) for each in found],
    }


def _row(verified: Verified, source: str) -> dict[str, Any]:
    """`certified` is the winner's row of `ksearch list`."""
    measured = verified.measured
    return {
        "state": str(verified.state),
        "findings": [{"kind": str(each.kind), "message": each.message} for each in verified.findings],
        "certified": winner_row(verified.winner, source),
        "measured": None
        if measured is None
        else {**asdict(measured), "speedup": measured.baseline_us / measured.time_us},
    }


def lines(verified: Verified) -> Text:
    """What became of one winner, and under it each finding."""
    winner, measured, state = verified.winner, verified.measured, verified.state
    told = Text(f"{state:<7}", style=_COLOURS[state])
    told.append(f"{winner.workload} on {winner.target.device}", style="default not bold not dim")
    if measured is not None and measured.speedup_ci is not None:
        low, high = measured.speedup_ci
        told.append(
            f": {text.time_us(measured.time_us)} us, {low:.3f}x to {high:.3f}x PyTorch"
            f"{_certified(winner.certificate.get('speedup_ci'))}",
            style="default not bold not dim",
        )
    elif measured is not None and winner.config is None:
        told.append(f": PyTorch, {text.time_us(measured.time_us)} us", style="default not bold not dim")
    for finding in verified.findings:
        told.append(f"\n       {finding.kind}: {finding.message}", style="default not bold not dim")
    return told


def _certified(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    return f" (certified {interval[0]:.3f}x to {interval[1]:.3f}x)"


def summary(found: Sequence[Verified]) -> str:
    """`12 winners: 10 holds, 1 slower, 1 left`."""
    return f"{text.many(len(found), 'winner')}: {text.counts(_counts(found))}"


def _counts(found: Sequence[Verified]) -> dict[str, int]:
    return dict(Counter(str(each.state) for each in found))

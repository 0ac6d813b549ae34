from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console, RenderableType

from ksearch.doctor import Finding
from ksearch.report import tables
from ksearch.store import Evaluation
from ksearch.types import Outcome, Status, Winner


def printed(table: RenderableType) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_winners_show_the_device_even_where_it_looks_like_markup(winner: Winner, baseline: Winner) -> None:
    now = datetime(2026, 11, 23, 13, tzinfo=UTC)
    header, first, second = printed(tables.winners([winner, baseline], now))
    assert header.split("  ")[0] == "op"
    assert "softmax scale=0.5  2048x4096  float32  strict  Some CPU [2 threads]" in first
    assert "1,240" in first
    assert "1.52x" in first
    assert "86 %" in first
    assert "3 d" in first
    assert second.endswith("PyTorch")


def test_trials_are_fastest_first_and_failures_last() -> None:
    def trial(number: int, outcome: Outcome) -> Evaluation:
        return Evaluation("study", number, {"unroll": number}, outcome, None, None, 0, 0, 0.0, "")

    found = [
        trial(0, Outcome(Status.WRONG, message="zeros [everywhere]")),
        trial(1, Outcome(Status.PASSED, time_us=9.0)),
        trial(2, Outcome(Status.PASSED, time_us=3.0, spread_us=0.1)),
    ]
    lines = printed(tables.trials(found))[1:]
    assert [line.split()[0] for line in lines] == ["2", "1", "0"]
    assert "zeros [everywhere]" in lines[2]


def test_a_finding_carries_the_command_that_mends_it() -> None:
    lines = printed(tables.findings([Finding("C++ compiler", "missing", "none", "apt-get install g++")]))
    assert "missing" in lines[1]
    assert "-> apt-get install g++" in lines[2]

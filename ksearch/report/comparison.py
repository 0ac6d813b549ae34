"""Winners side by side: what they are, how fast, by which config, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from ksearch.report import certificate, text
from ksearch.report.grid import Column, Grid
from ksearch.types import Winner


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: the same thing of each winner, None where one has none."""

    group: str
    name: str
    values: tuple[Any, ...]
    words: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.words)) > 1


def comparison_row(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of `rows.shown_row`, and what differs between them, as `ksearch compare --json` prints it."""
    first = found[0]["time_us"]
    names = _names(row["config"] or {} for row in found)
    configs = {name: [(row["config"] or {}).get(name) for row in found] for name in names}
    return {
        "winners": list(found),
        "times_the_first": [first / row["time_us"] for row in found],
        "config_differs": {name: values for name, values in configs.items() if _differ(values)},
        "config_same": {name: values[0] for name, values in configs.items() if not _differ(values)},
    }


def facts(winners: Sequence[Winner], found: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    """Everything about the winners, of which `found` are the `rows.shown_row`."""
    yield from _result(winners, found)
    configs = [row["config"] or {} for row in found]
    for name in _names(configs):
        yield _fact("config", name, [config.get(name) for config in configs])
    said = [
        dict(certificate.lines(winner, row["environment"]))
        for winner, row in zip(winners, found, strict=True)
    ]
    for name in _names(said):
        yield _fact("certificate", name, [lines.get(name) for lines in said])


def _result(winners: Sequence[Winner], found: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    workloads = [winner.workload for winner in winners]
    first = winners[0].time_us
    yield _fact("", "op", [workload.op for workload in workloads])
    yield _fact("", "shape", [workload.shape_text for workload in workloads])
    yield _fact("", "dtype", [workload.dtype for workload in workloads])
    yield _fact("", "policy", [workload.mode for workload in workloads])
    options = [dict(workload.options) for workload in workloads]
    for name in _names(options):
        yield _fact("", name, [each.get(name) for each in options])
    yield _fact("", "device", [f"{winner.target.device} ({winner.target.arch})" for winner in winners])
    runs = ["PyTorch" if winner.config is None else "kernel" for winner in winners]
    yield _fact("", "runs", runs)
    times = [winner.time_us for winner in winners]
    yield _fact("time", "us", times, text.time_us)
    yield _fact("time", "times the first", [first / each for each in times], text.times)
    yield _fact("time", "PyTorch us", [winner.baseline_us for winner in winners], text.time_us)
    yield _fact("time", "ceiling us", [winner.ceiling_us for winner in winners], text.time_us)
    yield _fact("time", "% of ceiling", [winner.percent_of_ceiling for winner in winners], text.percent)
    yield _fact("time", "times PyTorch", [winner.speedup for winner in winners], text.times)
    intervals = [winner.certificate.get("speedup_ci") for winner in winners]
    yield _fact("time", "95 % interval", intervals, lambda ends: " to ".join(map(text.times, ends)))
    yield _fact("search", "found", [winner.created or None for winner in winners])
    yield _fact("search", "candidates", [row["trials"] for row in found])
    yield _fact("search", "failed", [text.counts(row["failures"]) or "none" for row in found])


def _fact(group: str, name: str, values: Sequence[Any], words: Callable[[Any], str] = str) -> Fact:
    return Fact(group, name, tuple(values), tuple("-" if value is None else words(value) for value in values))


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of all of them, in the order in which they come."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def fact_rows(every: Sequence[Fact]) -> Iterator[dict[str, Any]]:
    """A row for each fact: what it is of, its name, and a column for each winner."""
    for fact in every:
        columns = {f"winner_{number}": value for number, value in enumerate(fact.values, 1)}
        yield {"of": fact.group or "workload", "name": fact.name, "differs": fact.differs, **columns}


def table(every: Sequence[Fact]) -> Grid:
    """A column for each winner and a block of lines for each group; what differs is marked by a star."""
    grid = Grid(
        Column(""),
        Column("winner"),
        *(Column(f"{number}", folds=16) for number in range(1, len(every[0].values) + 1)),
    )
    group = ""
    for fact in every:
        if fact.group != group:
            group = fact.group
            blank = [""] * len(fact.values)
            grid.add("", "", *blank)
            grid.add("", Text(group, style="bold"), *blank)
        grid.add("*" if fact.differs else "", fact.name, *fact.words, style="" if fact.differs else "dim")
    return grid

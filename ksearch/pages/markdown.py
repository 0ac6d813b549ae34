"""The report as Markdown for a pull request: a table, and a line for each workload."""

from __future__ import annotations

from collections.abc import Iterator

from ksearch.pages.contents import Contents
from ksearch.pages.views import Overview, WinnerRow, WorkloadView
from ksearch.report import text

_HEAD = (
    "op", "shape", "dtype", "device", "time (µs)", "PyTorch (µs)", "speed-up", "95 % interval", "of ceiling",
)  # fmt: skip
_SPECIAL = frozenset("\\`*_{}[]<>()#+!|~&")


def lines(contents: Contents) -> Iterator[str]:
    """In pieces. Without the time of writing: equal results give an equal text."""
    yield f"## {literal(contents.overview.title)}\n\n"
    yield from (f"{line}\n" for line in _table(contents.overview))
    several = len(contents.overview.devices) > 1
    yield from (f"- {_line(view, several)}\n" for view in contents.views())


def literal(written: str) -> str:
    """As it is: nothing in it is Markdown or HTML, and it stays on one line."""
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in " ".join(written.split()))


def _table(overview: Overview) -> Iterator[str]:
    if not overview.rows:
        yield "Nothing was tuned here yet; `ksearch tune softmax --shape 2048x4096` finds a first winner."
        return
    yield f"{overview.summary}."
    yield ""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|---|---|---|---|--:|--:|--:|--:|--:|"
    for row in overview.rows:
        yield f"| {' | '.join(_cells(row))} |"
    yield ""


def _cells(row: WinnerRow) -> Iterator[str]:
    yield literal(f"{row.op} {row.options}".strip())
    yield row.shape
    yield row.dtype + ("" if row.policy == "strict" else f" {literal(row.policy)}")
    yield literal(row.device)
    yield text.time_us(row.time_us)
    yield text.time_us(row.baseline_us)
    yield {"kernel": text.times(row.speedup), "pytorch": "PyTorch kept"}.get(row.result, "no winner")
    yield "-" if row.interval is None else " to ".join(map(text.times, row.interval))
    yield text.percent(row.percent_of_ceiling)


def _line(view: WorkloadView, names_device: bool) -> str:
    name = f"{view.workload} on {view.row.device}" if names_device else str(view.workload)
    tried = f"{len(view.evaluations) or 'no'} candidates in the database"
    if view.failures:
        tried += f", of which failed {text.counts({each.status: each.count for each in view.failures})}"
    if view.row.result == "kernel":
        said = f"`{view.row.config.replace('`', ' ')}`"
    elif view.row.result == "pytorch":
        said = "nothing found surely beats PyTorch"
    else:
        said = "no winner yet" if view.passed else "no candidate passed"
    alarm = f" **To be looked into:** {literal(view.row.alarm)}" if view.row.alarm else ""
    return f"{literal(name)}: {said}; {literal(tried)}.{alarm}"

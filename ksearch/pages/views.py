"""What a page shows, read from the store: typed, and without a word of HTML.

How a page is made, static or served:

- `overview(winners, searches, title, link)` gives the Overview, whose `rows` are WinnerRows; a page of some
  of them is made of `winner_row` of each. `link` says where the page of a (workload, target) is; `slug` is a
  name for it that lasts, fit for an address or an id.
- `workload_view(workload, target, winner, evaluations, ...)` gives everything about one of them; `winner` is
  None while its first search runs.
- `template.fragment("overview.html.j2", view=...)` and `template.fragment("workload.html.j2", view=...)` are
  what a page puts between its own head and foot; each fragment's first line says what it takes.
- `figures.PLANS` says which figures a workload has, so that the fragment can leave room for them;
  `figures.draw(view, places)` computes them as plain JSON, and the script `html/page.js` draws them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ksearch.pages import evidence
from ksearch.pages.evidence import Compared, Failure, Parameter, RegimeError
from ksearch.report import summary, text
from ksearch.store import Evaluation
from ksearch.types import Status, Target, Winner, Workload, digest

Link = Callable[[Workload, Target], str]


@dataclass(frozen=True, slots=True)
class Search:
    """What was tried for a (workload, target) without a winner: the search runs, or nothing was right."""

    workload: Workload
    target: Target
    trials: int
    passed: int
    best_us: float | None
    """Of the screenings; None where none passed."""
    updated: str
    """When the last one was recorded: UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class WinnerRow:
    """One line of the table of winners; without a winner `time_us` is that of the best screening."""

    slug: str
    href: str
    op: str
    options: str
    """`approximate=none`; empty where the op has none."""
    shape: str
    elements: int
    """Of the full tensors, by which shapes are sorted."""
    dtype: str
    policy: str
    device: str
    backend: str
    arch: str
    result: str = "none"
    """`kernel`, `pytorch` where PyTorch won, or `none` where there is no winner yet."""
    time_us: float | None = None
    baseline_us: float | None = None
    ceiling_us: float | None = None
    speedup: float | None = None
    interval: tuple[float, float] | None = None
    """Of the speed-up, with 95 % confidence."""
    percent_of_ceiling: float | None = None
    config: str = ""
    created: str = ""
    alarm: str = ""
    """Why the time is not to be trusted; empty where nothing speaks against it."""

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"

    @property
    def day(self) -> str:
        """Of `created`."""
        return self.created[:10]


@dataclass(frozen=True, slots=True)
class Overview:
    """What a database, or a part of it, holds."""

    title: str
    rows: tuple[WinnerRow, ...]

    @property
    def kernels(self) -> tuple[WinnerRow, ...]:
        return tuple(row for row in self.rows if row.result == "kernel")

    @property
    def by_pytorch(self) -> int:
        return sum(row.result == "pytorch" for row in self.rows)

    @property
    def without(self) -> int:
        """Workloads that were searched and have no winner."""
        return sum(row.result == "none" for row in self.rows)

    @property
    def speedup(self) -> float | None:
        """The geometric mean over all workloads with a winner; one that PyTorch won counts as 1."""
        ratios = [row.speedup for row in self.rows if row.speedup]
        return statistics.geometric_mean(ratios) if ratios else None

    @property
    def percent_of_ceiling(self) -> float | None:
        """The median over all workloads with a winner."""
        known = [row.percent_of_ceiling for row in self.rows if row.percent_of_ceiling is not None]
        return statistics.median(known) if known else None

    @property
    def summary(self) -> str:
        """One line."""
        if not self.rows:
            return "nothing was tuned here yet"
        facts = [f"{len(self.kernels)} of {len(self.rows)} workloads have a kernel faster than PyTorch"]
        if self.speedup is not None:
            facts.append(f"{text.times(self.speedup)} its speed in the geometric mean")
        if self.percent_of_ceiling is not None:
            facts.append(f"{text.percent(self.percent_of_ceiling)} of the ceiling in the median")
        return ", ".join(facts)

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(sorted({row.device for row in self.rows}))

    def values(self, column: str) -> tuple[str, ...]:
        """What a filter of that column offers."""
        return tuple(sorted({getattr(row, column) for row in self.rows}))


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """Everything about one workload on one device."""

    row: WinnerRow
    workload: Workload
    target: Target
    winner: Winner | None
    evaluations: tuple[Evaluation, ...]
    """Of the search that the winner comes from; where that is not known, of the latest."""
    compared: tuple[Compared, ...]
    """The winner, the runner-up if its samples were kept, PyTorch, peers, the ceiling."""
    config: tuple[Parameter, ...]
    launch: tuple[tuple[str, str], ...]
    failures: tuple[Failure, ...]
    errors: tuple[RegimeError, ...]
    near: tuple[tuple[int, float], ...]
    """Other numbers of rows and the speed-up there."""
    evidence: tuple[tuple[str, str], ...]
    """What else the certificate says, and what it was measured under."""
    source: str | None
    """None where PyTorch won, or nothing has."""
    snippet: str
    """Lines of Python that load and run the winner; empty without one."""

    @property
    def passed(self) -> int:
        return sum(each.outcome.status is Status.PASSED for each in self.evaluations)

    @property
    def study(self) -> str:
        """Its name in Optuna's tables; empty where nothing was tried."""
        return self.evaluations[-1].study if self.evaluations else ""


def slug(workload: Workload, target: Target) -> str:
    """`softmax-4096x8192-float32-1f9c62a07be3d841`: names both for good, in letters, digits and dashes."""
    readable = "".join(
        c if c.isascii() and c.isalnum() else "-" for c in f"{workload.op}-{workload.shape_text}"
    )
    return f"{readable}-{workload.dtype}-{digest(workload.key + target.key)[:16]}"


def search(workload: Workload, target: Target, evaluations: Sequence[Evaluation]) -> Search:
    """Of all that was tried for them."""
    times = [each.outcome.time_us for each in evaluations if each.outcome.time_us is not None]
    updated = max((each.created for each in evaluations), default="")
    return Search(workload, target, len(evaluations), len(times), min(times, default=None), updated)


def winner_row(winner: Winner, href: str) -> WinnerRow:
    known = winner.certificate
    return _row(
        winner.workload,
        winner.target,
        href,
        result="pytorch" if winner.config is None else "kernel",
        time_us=winner.time_us,
        baseline_us=winner.baseline_us,
        ceiling_us=winner.ceiling_us,
        speedup=winner.speedup,
        interval=evidence.interval(known.get("speedup_ci")),
        percent_of_ceiling=winner.percent_of_ceiling,
        config=text.config(winner.config),
        created=winner.created,
        alarm=str(known.get("alarm") or ""),
    )


def search_row(search: Search, href: str) -> WinnerRow:
    """The line of a workload without a winner."""
    return _row(search.workload, search.target, href, time_us=search.best_us, created=search.updated)


def _row(workload: Workload, target: Target, href: str, **known: Any) -> WinnerRow:
    return WinnerRow(
        slug=slug(workload, target),
        href=href,
        op=workload.op,
        options=" ".join(f"{name}={value}" for name, value in workload.options),
        shape=workload.shape_text,
        elements=workload.numel,
        dtype=workload.dtype,
        policy=workload.mode,
        device=target.device,
        backend=target.backend,
        arch=target.arch,
        **known,
    )


def overview(winners: Sequence[Winner], searches: Sequence[Search], title: str, link: Link) -> Overview:
    """`title` says what is shown: the database's name, perhaps with the filters."""
    found = [winner_row(each, link(each.workload, each.target)) for each in winners]
    left = [search_row(each, link(each.workload, each.target)) for each in searches]
    return Overview(title, (*found, *left))


def workload_view(
    workload: Workload,
    target: Target,
    winner: Winner | None,
    evaluations: Sequence[Evaluation],
    *,
    href: str,
    environment: Mapping[str, str] | None = None,
    source: str | None = None,
    db: str = "",
    default_db: str = "",
) -> WorkloadView:
    """`evaluations` are all that the store has for them, in the order recorded."""
    known = {} if winner is None else winner.certificate
    studies = {each.study: each.created for each in sorted(evaluations, key=lambda each: each.created)}
    study = known.get("study") if known.get("study") in studies else next(reversed(studies), None)
    tried = tuple(each for each in evaluations if each.study == study)
    row = winner_row(winner, href) if winner else search_row(search(workload, target, tried), href)
    return WorkloadView(
        row=row,
        workload=workload,
        target=target,
        winner=winner,
        evaluations=tried,
        compared=() if winner is None else evidence.compared(winner),
        config=evidence.parameters(winner, known),
        launch=() if winner is None or winner.launch is None else evidence.launch(winner.launch),
        failures=evidence.failures(tried),
        errors=evidence.errors(known.get("errors")),
        near=evidence.near(known.get("near")),
        evidence=() if winner is None else evidence.rest(winner, environment or {}),
        source=source,
        snippet="" if winner is None else summary.snippet(winner, workload.op, db, default_db),
    )

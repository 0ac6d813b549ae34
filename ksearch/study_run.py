"""Tune every workload of a study, one after the other, and say what became of each.

A workload that fails costs the study nothing but itself. What is measured is in the database at once, so a
study that was ended goes on where it was: workloads with a winner of the same space, templates and program
are not tuned again, and the search of an interrupted one takes over its earlier trials.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksearch import env, tuner
from ksearch.budget import interrupts
from ksearch.errors import DeviceBusy, KsearchError, NoSuchDevice, StoreError, ToolMissing
from ksearch.pace import Pace
from ksearch.plan import Plan, make_plan
from ksearch.stopping import Ended
from ksearch.store import Store
from ksearch.study import Entry, StudyFile
from ksearch.tuner import Progress, Report
from ksearch.types import Winner

_OF_THE_MACHINE = (DeviceBusy, NoSuchDevice, StoreError, ToolMissing)
"""What fails for one workload and would for all that follow."""

_log = logging.getLogger(__name__)


class State(enum.StrEnum):
    """What became of a workload."""

    TUNED = "tuned"
    PYTORCH = "pytorch"
    """Tuned, and nothing surely beats PyTorch."""
    HAD = "had"
    """It has a winner of the same search already."""
    NEEDS = "needs"
    """ksearch cannot tune it yet."""
    FAILED = "failed"
    LEFT = "left"
    """Its turn did not come."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one workload."""

    entry: Entry
    state: State
    reason: str = ""
    """Why there is no winner; empty where there is one."""
    winner: Winner | None = None
    report: Report | None = None
    """Of the search, where one was run."""
    elapsed_s: float = 0.0

    @property
    def trials(self) -> int:
        """Candidates that were evaluated for it, those of earlier runs included."""
        if self.report is not None:
            return self.report.trials
        return self.winner.certificate.get("trials", 0) if self.winner is not None else 0


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What one run of a study found."""

    study: str
    db: str
    elapsed_s: float
    results: tuple[Result, ...]
    """One for each entry, in the order of the file."""
    interrupted: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every workload that can be tuned has a winner."""
        return all(result.state not in (State.FAILED, State.LEFT) for result in self.results)


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """Where a running study stands."""

    done: int
    total: int
    entry: Entry | None
    """The one that is being tuned."""
    search: Progress | None
    """Where its search stands; None before it has begun."""
    left_s: float | None
    finished: Result | None
    """Set in the one call that says that a workload is finished."""


def run(
    study: StudyFile,
    *,
    device: str | None = None,
    db: str | os.PathLike[str] | None = None,
    trials: int | None = None,
    budget_s: float | None = None,
    again: bool = False,
    search: Callable[..., Report] = tuner.tune,
    progress: Callable[[StudyProgress], None] | None = None,
) -> StudyReport:
    """Tune what has no winner yet, in the order of the file; with `again` all of it.

    `device`, `trials` (of each workload) and `budget_s` (of all of them) come before the file's own. A
    workload that ends early leaves its seconds to those after it. `search` is `tuner.tune` or a partial of
    it. The first Ctrl-C ends the running search, keeps its best and ends the study; a second one ends the
    search at once.

    Raises NoSuchDevice, ToolMissing, StoreError, DeviceBusy: where nothing was tuned before, else they end
    the study.
    """
    began = time.perf_counter()
    device = device or study.device
    path = Path(db) if db is not None else env.database_path()
    results: list[Result] = []
    with interrupts() as stop:
        settled = _settled(study.entries, device, path, again)
        pairs = list(zip(study.entries, settled, strict=True))
        pace = Pace(budget_s or study.budget_s, [entry.weight for entry, known in pairs if known is None])

        def show(entry: Entry | None, step: Progress | None = None, finished: Result | None = None) -> None:
            if progress is not None:
                progress(StudyProgress(len(results), len(pairs), entry, step, pace.left_s, finished))

        ended = ""
        how: dict[str, Any] = {"device": device, "trials": trials or study.trials, "db": path}
        for entry, known in pairs:
            ended = ended or _reason_to_end(stop, pace)
            result = known or (Result(entry, State.LEFT, ended) if ended else None)
            if result is None:
                show(entry)
                try:
                    with pace.turn() as share_s:
                        watch = functools.partial(show, entry)
                        result = _tune(entry, search, stop, **how, budget_s=share_s, progress=watch)
                except _OF_THE_MACHINE as error:
                    if pace.turns == 1:
                        raise
                    result, ended = Result(entry, State.FAILED, str(error)), str(error)
            results.append(result)
            show(None, finished=result)
        elapsed_s = time.perf_counter() - began
        return StudyReport(study.name, str(path), elapsed_s, tuple(results), stop.is_set())


def _reason_to_end(stop: threading.Event, pace: Pace) -> str:
    """Why no more searches are begun; empty where they are."""
    if stop.is_set():
        return "interrupted"
    return "the time of the study is spent" if pace.is_spent else ""


def _settled(entries: Sequence[Entry], device: str | None, path: Path, again: bool) -> list[Result | None]:
    """What is known before any search: lacks, mistakes, winners from before; None for what is to be tuned."""
    with Store.open(path) as store:
        return [_known(entry, device, store, again) for entry in entries]


def _known(entry: Entry, device: str | None, store: Store, again: bool) -> Result | None:
    if entry.needs:
        return Result(entry, State.NEEDS, f"needs {entry.needs}")
    try:
        how = (dict(entry.options), entry.policy, entry.prepacked)
        plan = make_plan(entry.op, entry.shape, entry.dtype, device, *how)
        winner = None if again else store.find(plan.workload, plan.target)
        if winner is None or not _is_final(winner, plan):
            return None
    except _OF_THE_MACHINE:
        raise
    except Exception as error:  # noqa: BLE001  (an op is anyone's code: it must not cost the others)
        return _failed(entry, error)
    return Result(entry, State.HAD, winner=winner)


def _is_final(winner: Winner, plan: Plan) -> bool:
    """Whether it came of a whole search of this very study: else that search goes on."""
    facts = winner.certificate
    worked = facts.get("trials", 0) > sum(facts.get("failures", {}).values())
    return worked and facts.get("ended") != Ended.INTERRUPTED and facts.get("study") == plan.study_name()


def _tune(entry: Entry, search: Callable[..., Report], stop: threading.Event, **how: Any) -> Result:
    """One search. Raises what concerns the machine; everything else is the workload's own failure."""
    began = time.perf_counter()
    try:
        report = search(
            entry.op,
            entry.shape,
            dtype=entry.dtype,
            policy=entry.policy,
            prepacked=entry.prepacked,
            options=dict(entry.options),
            stop=stop,
            **how,
        )
    except KeyboardInterrupt:  # nothing was found yet, or it is the second Ctrl-C
        stop.set()
        return Result(entry, State.LEFT, "interrupted", elapsed_s=time.perf_counter() - began)
    except _OF_THE_MACHINE:
        raise
    except Exception as error:  # noqa: BLE001  (an op is anyone's code: it must not cost the others)
        return _failed(entry, error, time.perf_counter() - began)
    failed = sum(report.failures.values())
    if failed == report.trials:
        first = "".join(f"; {status}: {text}" for status, text in [*report.first_failures.items()][:1])
        reason = f"all {failed} candidates failed{first}" if failed else "the time was up before a candidate"
        return Result(entry, State.FAILED, reason, report=report, elapsed_s=report.elapsed_s)
    state = State.PYTORCH if report.winner.config is None else State.TUNED
    return Result(entry, state, "", report.winner, report, report.elapsed_s)


def _failed(entry: Entry, error: Exception, elapsed_s: float = 0.0) -> Result:
    _log.debug("%s failed", entry, exc_info=error)
    kind = "" if isinstance(error, KsearchError) else f"{type(error).__name__}: "
    return Result(entry, State.FAILED, " ".join(f"{kind}{error}".split()), elapsed_s=elapsed_s)

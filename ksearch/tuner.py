"""Search for the fastest kernel of one workload, and keep it: the loop, and what is around it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ksearch import env, stopping
from ksearch.admission import admit
from ksearch.backends import Backend
from ksearch.budget import Budget, interrupts
from ksearch.evaluate.messages import Ready
from ksearch.evaluate.pool import Build, CompilePool
from ksearch.evaluate.sanitize import Sanitizer
from ksearch.evaluate.worker import Worker, warm
from ksearch.plan import Plan, device_lock, make_plan
from ksearch.promotion import promote
from ksearch.search import Study, Trial
from ksearch.stopping import Ended
from ksearch.store import Store
from ksearch.store.engine import clear_errors
from ksearch.types import Option, Outcome, Winner

DEFAULT_TRIALS = {"cuda": 200, "cpu": 50}
_FINAL_S = 5.0
_NEAR = 0.05
"""Of the time so far, for the winner on other numbers of rows."""
_AHEAD = 16
"""Candidates in flight at most. A compiler takes 0.1 to 0.3 s and the worker 12 to 20 ms, so 16 keep it busy;
with 28 a search of 100 trials knew too little of its own results: it left 0.4 % instead of 0.1 %."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running search stands."""

    trials_done: int
    trials_total: int | None
    failures: dict[str, int]
    best_us: float | None
    baseline_us: float | None
    ceiling_us: float | None
    seconds_left: float | None
    phase: str


@dataclass(frozen=True, slots=True)
class Report:
    """What one run of the tuner found, and what it spent."""

    winner: Winner
    trials: int
    failures: dict[str, int]
    """Failed candidates by status."""
    elapsed_s: float
    db: str
    first_failures: dict[str, str] = field(default_factory=dict)
    """The first message of each status."""
    phases_s: dict[str, float] = field(default_factory=dict)
    """Where the time went."""
    ended: Ended = Ended.TRIALS
    """Why the search ended."""


def tune(
    op: str,
    shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    policy: str = "strict",
    prepacked: bool = False,
    device: str | None = None,
    options: Mapping[str, Option] | None = None,
    trials: int | None = None,
    budget_s: float | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    jobs: int | None = None,
    early_stop: bool = True,
    sanitize: bool = False,
    db: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Search for the fastest kernel of `op` on tensors of `shape`, promote it, and say what was found.

    `op` is a name or `my_ops.py:name`; `shape`, `policy` and `prepacked` are as `Op.workload` takes them.
    `trials` counts those of earlier, interrupted runs, which are taken over. With `early_stop` the search
    ends by itself when more trials are not expected to pay (`stopping`). With `sanitize` finalists run under
    compute-sanitizer, and one that it finds an error in does not win. The first Ctrl-C ends it and promotes
    the best so far, a second one leaves at once; with `stop` that event ends it instead, and Ctrl-C is the
    caller's.

    Raises UsageError and its kind for what cannot be done as asked, RenderError for a template that does not
    render, ToolMissing without a compiler, StoreError, DeviceBusy, WorkerError.
    """
    with warm() as spare:  # it imports torch while this process does
        plan = make_plan(op, shape, dtype, device, options or {}, policy, prepacked)
        if trials is None and budget_s is None:
            trials = DEFAULT_TRIALS[plan.target.backend]
        sanitizer = Sanitizer.find(plan.op, plan.workload, plan.target) if sanitize else None
        budget = Budget(trials, budget_s, _FINAL_S)
        path = Path(db) if db is not None else env.database_path()
        with (
            interrupts() if stop is None else nullcontext(stop) as interrupted,
            Store.open(path) as store,
            device_lock(plan.target),
            CompilePool(plan.target.backend, jobs or default_jobs(plan.backend)) as pool,
        ):
            with budget.phase("admit"):
                plan = admit(plan, pool, seed)
            name = plan.study_name()
            with Worker(plan.job(seed), spare=spare) as worker:
                with budget.phase("space"):
                    study = _start(plan, name, store, sampler, seed, trials)
                search = _Search(plan, name, study, pool, worker, store, budget, progress)
                ended = search.run(interrupted, early_stop)
                if interrupted.is_set() and not study.best(1):
                    raise KeyboardInterrupt
                search.show("final")
                with budget.phase("final"):
                    winner = promote(
                        plan,
                        name,
                        study,
                        worker,
                        pool,
                        store,
                        seed=seed,
                        budget_s=budget.final_s,
                        ended=ended,
                        near_s=_NEAR * budget.elapsed_s,
                        sanitizer=sanitizer,
                    )
                with budget.phase("mirror"), clear_errors(path):
                    study.mirror(store.url, name)
                return Report(
                    winner=winner,
                    trials=study.done,
                    failures=study.failures(),
                    elapsed_s=budget.elapsed_s,
                    db=str(path),
                    first_failures=study.first_failures(),
                    phases_s=dict(budget.phases_s),
                    ended=ended,
                )


def _start(plan: Plan, name: str, store: Store, sampler: str, seed: int, trials: int | None) -> Study:
    """A study that begins with what is known: earlier trials, the family's guesses, neighbours' winners."""
    neighbours = [w.config for w in store.neighbours(plan.workload, plan.target) if w.config is not None]
    study = Study(plan.space, sampler=sampler, seed=seed, trials=trials, guesses=[*plan.guesses, *neighbours])
    for earlier in sorted(store.evaluations(plan.workload, plan.target), key=lambda known: known.number):
        if earlier.study == name:
            study.replay(earlier.config, earlier.outcome, earlier.number)
    return study


@dataclass
class _Search:
    """Candidates of one study on their way: ask, render, compile, check and time, record, tell."""

    plan: Plan
    name: str
    """Of the study."""
    study: Study
    pool: CompilePool
    worker: Worker
    store: Store
    budget: Budget
    progress: Callable[[Progress], None] | None
    ready: Ready | None = None
    """What the worker knows since it was started."""

    def run(self, interrupted: threading.Event, early_stop: bool) -> Ended:
        """Until there is a reason to end, which it gives."""
        most, exclusive = ahead(self.plan.backend, self.pool.width), self.plan.backend.exclusive
        self._ask(most)
        with self.budget.phase("start"):
            self.ready = self.worker.start()  # the first sources compile meanwhile
        builds: deque[Build] = deque()
        while (ended := self._ended(self.ready, interrupted, early_stop)) is None:
            if not builds:
                if not self.pool.pending:
                    return Ended.EXHAUSTED if self.study.done >= self.study.size else Ended.TRIALS
                with self.budget.phase("wait for compile"):
                    builds.extend(self.pool.completed(wait_for_all=exclusive))
            self._finish(builds.popleft())
            # On a CPU only once all are timed: compilers would slow them down.
            if not builds or not exclusive:
                self._ask(most - len(builds))
        return ended

    def _ended(self, ready: Ready, interrupted: threading.Event, early_stop: bool) -> Ended | None:
        """Why the search is over, or None while it goes on."""
        if interrupted.is_set():
            return Ended.INTERRUPTED
        if self.budget.is_over(self.study.done):
            return Ended.BUDGET if self.budget.is_late else Ended.TRIALS
        # A linear's ceiling is PyTorch's product: no wall.
        wall_us = 0.0 if self.plan.workload.inner else ready.ceiling_us
        return stopping.early(self.study.outcomes, self.plan.target, wall_us) if early_stop else None

    def _ask(self, most: int) -> None:
        """Keep `most` candidates in the compile pool."""
        trials = self.budget.trials
        while self.pool.pending < most and (trials is None or len(self.study.trials) < trials):
            with self.budget.phase("ask"):
                trial = self.study.ask()
            if trial is None:
                return
            self.pool.submit(trial.number, self.plan.render(trial.config))

    def _finish(self, build: Build) -> None:
        """See what became of a candidate that was compiled, and say it to all who want to know."""
        trial = self.study.trial(int(str(build.tag)))
        outcome = self._evaluate(trial, build)
        with self.budget.phase("record"):
            # First of all: what is in the file outlives this process.
            facts = (trial.number, trial.config, outcome, build.artifact)
            self.store.record(self.plan.workload, self.plan.target, self.name, *facts)
            self.study.tell(trial, outcome)
        self.show("search")

    def _evaluate(self, trial: Trial, build: Build) -> Outcome:
        """Check and time one compiled candidate; equal machine code is measured once."""
        if build.artifact is None:
            assert build.status is not None
            return Outcome(build.status, message=build.message)
        candidate = self.plan.candidate(trial.config, build.artifact)
        twin = self.study.twin(trial, f"{candidate.artifact.digest} {candidate.launch}")
        if twin is not None:
            return twin
        with self.budget.phase("time"):
            outcome = self.worker.screen(candidate, self.study.best_us)
        self.budget.move(outcome.check_s, "time", "check")
        return outcome

    def show(self, phase: str) -> None:
        """Where it stands, to whoever watches."""
        if self.progress is None or self.ready is None:
            return
        trials, study = self.budget.trials, self.study
        self.progress(
            Progress(
                trials_done=study.done,
                trials_total=None if trials is None else min(trials, study.size),
                failures=study.failures(),
                best_us=study.best_us,
                baseline_us=self.ready.baseline_us,
                ceiling_us=self.ready.ceiling_us,
                seconds_left=self.budget.left_s(study.done),
                phase=phase,
            )
        )


def ahead(backend: Backend, jobs: int) -> int:
    """Candidates in flight: enough for the compilers never to wait, and where they must wait for what is
    timed (on a CPU) one for each."""
    return jobs if backend.exclusive else min(jobs + 2, _AHEAD)


def default_jobs(backend: Backend) -> int:
    """Compilers at a time; where the device is not the CPU, two cores stay free for the worker and us."""
    cores = len(os.sched_getaffinity(0))
    return cores if backend.exclusive else max(1, cores - 2)

"""Search for the fastest kernel of one workload, and keep it: the whole loop on one screen."""

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

    `op` is a name or `my_ops.py:name`; `shape`, `policy` and `prepacked` are as `Op.workload` takes them. `trials`
    counts those of earlier, interrupted runs, which are taken over. With `early_stop` the search ends by itself when
    more trials are not expected to pay (`stopping`). With `sanitize` finalists run under compute-sanitizer,
    and one that it finds an error in does not win. The first Ctrl-C ends it and promotes the best so far, a
    second one leaves at once; with `stop` that event ends it instead, and Ctrl-C is the caller's.

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
                most = ahead(plan.backend, pool.width)
                _ask(plan, study, pool, budget, most)
                with budget.phase("start"):
                    ready = worker.start()  # the first sources compile meanwhile
                builds: deque[Build] = deque()
                while (ended := _ended(plan, study, ready, budget, interrupted, early_stop)) is None:
                    if not builds:
                        if not pool.pending:
                            ended = Ended.EXHAUSTED if study.done >= study.size else Ended.TRIALS
                            break
                        with budget.phase("wait for compile"):
                            builds.extend(pool.completed(wait_for_all=plan.backend.exclusive))
                    build = builds.popleft()
                    trial = study.trial(int(str(build.tag)))
                    outcome = _evaluate(plan, trial, build, worker, study, budget)
                    with budget.phase("record"):
                        # First of all: what is in the file outlives this process.
                        facts = (trial.number, trial.config, outcome, build.artifact)
                        store.record(plan.workload, plan.target, name, *facts)
                        study.tell(trial, outcome)
                    _show(progress, study, ready, budget, "search")
                    # On a CPU only once all are timed: compilers would slow them down.
                    if not builds or not plan.backend.exclusive:
                        _ask(plan, study, pool, budget, most - len(builds))
                if interrupted.is_set() and not study.best(1):
                    raise KeyboardInterrupt
                _show(progress, study, ready, budget, "final")
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
                failures, messages = study.failures(), study.first_failures()
                phases_s = dict(budget.phases_s)
                return Report(
                    winner, study.done, failures, budget.elapsed_s, str(path), messages, phases_s, ended
                )


def _start(plan: Plan, name: str, store: Store, sampler: str, seed: int, trials: int | None) -> Study:
    """A study that begins with what is known: earlier trials, the family's guesses, neighbours' winners."""
    neighbours = [w.config for w in store.neighbours(plan.workload, plan.target) if w.config is not None]
    study = Study(plan.space, sampler=sampler, seed=seed, trials=trials, guesses=[*plan.guesses, *neighbours])
    for earlier in sorted(store.evaluations(plan.workload, plan.target), key=lambda known: known.number):
        if earlier.study == name:
            study.replay(earlier.config, earlier.outcome, earlier.number)
    return study


def _ended(
    plan: Plan, study: Study, ready: Ready, budget: Budget, interrupted: threading.Event, early_stop: bool
) -> Ended | None:
    """Why the search is over, or None while it goes on."""
    if interrupted.is_set():
        return Ended.INTERRUPTED
    if budget.is_over(study.done):
        return Ended.BUDGET if budget.is_late else Ended.TRIALS
    wall_us = 0.0 if plan.workload.inner else ready.ceiling_us  # a linear's is PyTorch's product: no wall
    return stopping.early(study.outcomes, plan.target, wall_us) if early_stop else None


def _ask(plan: Plan, study: Study, pool: CompilePool, budget: Budget, most: int) -> None:
    """Keep `most` candidates in the compile pool."""
    while pool.pending < most and (budget.trials is None or len(study.trials) < budget.trials):
        with budget.phase("ask"):
            trial = study.ask()
        if trial is None:
            return
        pool.submit(trial.number, plan.render(trial.config))


def _evaluate(
    plan: Plan, trial: Trial, build: Build, worker: Worker, study: Study, budget: Budget
) -> Outcome:
    """Check and time one compiled candidate; equal machine code is measured once."""
    if build.artifact is None:
        assert build.status is not None
        return Outcome(build.status, message=build.message)
    candidate = plan.candidate(trial.config, build.artifact)
    twin = study.twin(trial, f"{candidate.artifact.digest} {candidate.launch}")
    if twin is not None:
        return twin
    with budget.phase("time"):
        outcome = worker.screen(candidate, study.best_us)
    budget.move(outcome.check_s, "time", "check")
    return outcome


def _show(
    progress: Callable[[Progress], None] | None, study: Study, ready: Ready, budget: Budget, phase: str
) -> None:
    if progress is None:
        return
    progress(
        Progress(
            trials_done=study.done,
            trials_total=None if budget.trials is None else min(budget.trials, study.size),
            failures=study.failures(),
            best_us=study.best_us,
            baseline_us=ready.baseline_us,
            ceiling_us=ready.ceiling_us,
            seconds_left=budget.left_s(study.done),
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

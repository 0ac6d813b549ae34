"""Search for the fastest kernel of one workload, and keep it: the whole loop on one screen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ksearch import env
from ksearch.backends import Backend
from ksearch.budget import Budget, interrupts
from ksearch.evaluate.messages import Ready
from ksearch.evaluate.pool import Build, CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.plan import Plan, device_lock, make_plan
from ksearch.promotion import promote
from ksearch.search import Study, Trial
from ksearch.store import Store
from ksearch.store.engine import clear_errors
from ksearch.types import Option, Outcome, Winner

DEFAULT_TRIALS = {"cuda": 200, "cpu": 50}
_FINAL_S = 5.0


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


def tune(
    op: str,
    shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    device: str | None = None,
    options: Mapping[str, Option] | None = None,
    trials: int | None = None,
    budget_s: float | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    jobs: int | None = None,
    db: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Search for the fastest kernel of `op` on tensors of `shape`, promote it, and say what was found.

    `op` is a name or `my_ops.py:name`. `trials` counts those of earlier, interrupted runs, which are taken
    over. The first Ctrl-C ends the search and promotes the best so far, a second one leaves at once.

    Raises UsageError and its kind for what cannot be done as asked, RenderError for a template that does not
    render, ToolMissing without a compiler, StoreError, DeviceBusy, WorkerError.
    """
    plan = make_plan(op, shape, dtype, device, options or {})
    name = plan.study_name()
    if trials is None and budget_s is None:
        trials = DEFAULT_TRIALS[plan.target.backend]
    budget = Budget(trials, budget_s, _FINAL_S)
    path = Path(db) if db is not None else env.database_path()
    with (
        interrupts() as interrupted,
        Store.open(path) as store,
        device_lock(plan.target),
        Worker(plan.job(seed)) as worker,
        CompilePool(plan.target.backend, jobs or _jobs(plan.backend)) as pool,
    ):
        study = _start(plan, name, store, sampler, seed, trials)
        _ask(plan, study, pool, budget)
        with budget.phase("start"):
            ready = worker.start()  # the first sources compile meanwhile
        while pool.pending and not interrupted.is_set() and not budget.is_over(study.done):
            with budget.phase("wait for compile"):
                builds = pool.completed(wait_for_all=plan.backend.exclusive)
            for build in builds:
                trial = study.trials[int(str(build.tag))]
                outcome = _evaluate(plan, trial, build, worker, study, budget)
                with budget.phase("record"):
                    study.tell(trial, outcome)
                    facts = (trial.number, trial.config, outcome, build.artifact)
                    store.record(plan.workload, plan.target, name, *facts)
                _show(progress, study, ready, budget, "search")
                if not plan.backend.exclusive:
                    _ask(plan, study, pool, budget)
            _ask(plan, study, pool, budget)  # on a CPU only now: compilers would slow down what is timed
        if interrupted.is_set() and not study.best(1):
            raise KeyboardInterrupt
        _show(progress, study, ready, budget, "final")
        with budget.phase("final"):
            winner = promote(plan, name, study, worker, pool, store, seed=seed, budget_s=budget.final_s)
        with budget.phase("mirror"), clear_errors(path):
            study.mirror(store.url, name)
        failures, messages = study.failures(), study.first_failures()
        return Report(
            winner, study.done, failures, budget.elapsed_s, str(path), messages, dict(budget.phases_s)
        )


def _start(plan: Plan, name: str, store: Store, sampler: str, seed: int, trials: int | None) -> Study:
    """A study that begins with what is known: earlier trials, the family's guesses, neighbours' winners."""
    neighbours = [w.config for w in store.neighbours(plan.workload, plan.target) if w.config is not None]
    study = Study(plan.space, sampler=sampler, seed=seed, trials=trials, guesses=[*plan.guesses, *neighbours])
    for earlier in store.evaluations(plan.workload, plan.target):
        if earlier.study == name:
            study.replay(earlier.config, earlier.outcome)
    return study


def _ask(plan: Plan, study: Study, pool: CompilePool, budget: Budget) -> None:
    """Keep two rounds in the compile pool, so that no compiler ever waits for us."""
    while pool.pending < 2 * pool.width and (budget.trials is None or len(study.trials) < budget.trials):
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


def _jobs(backend: Backend) -> int:
    """Compilers at a time; where the device is not the CPU, two cores stay free for the worker and us."""
    cores = len(os.sched_getaffinity(0))
    return cores if backend.exclusive else max(1, cores - 2)

"""The final: race the best few against PyTorch, keep the fastest that is right, with the evidence.

PyTorch itself is always a finalist. Where nothing surely beats it, that is what the record says and
what the loader runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ksearch import artifacts
from ksearch.errors import KsearchError
from ksearch.evaluate.confidence import bootstrap_ci
from ksearch.evaluate.messages import FinalEntry, Finals
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.plan import Plan
from ksearch.search import Study, Trial
from ksearch.stopping import Ended
from ksearch.store import Store
from ksearch.types import Candidate, Status, Winner

FINALISTS = 6
_ENOUGH = 2
"""Right ones among them: the winner and the runner-up. To check all six took 6 s more at 4096x393216."""
_NEAR_CALLS = 8
"""Of the kernel and of PyTorch, that measuring another number of rows takes at least."""
_SUSPICIOUS = 1.05
"""Faster than the ceiling by this factor is an alarm: the copy was disturbed, or the check was fooled."""
_SUSPICIOUS_LINEAR = 1.5
"""The same of a linear, whose ceiling is PyTorch's product: no wall, and not as fast in every shape."""


def promote(
    plan: Plan,
    name: str,
    study: Study,
    worker: Worker,
    pool: CompilePool,
    store: Store,
    *,
    seed: int,
    budget_s: float,
    ended: Ended,
    near_s: float = 0.0,
) -> Winner:
    """Race the finalists, check the fastest on the whole workload, and put the winner into the store.

    For `near_s` seconds the winner then runs on other numbers of rows, so that it may be used there.
    Those that fail the full check are recorded with what they failed at; where no finalist is right the next
    best race.
    """
    waiting = study.best(len(study.trials))
    while True:
        racing = _finalists(study, waiting)
        waiting = [trial for trial in waiting if trial not in racing]
        candidates = _compiled(plan, racing, pool)
        finals = worker.finals(candidates, budget_s=budget_s, enough=_ENOUGH)
        for trial, entry in zip(racing, finals.entries, strict=True):
            if entry.outcome.status is not Status.PASSED:
                trial.outcome = entry.outcome
                store.record(plan.workload, plan.target, name, trial.number, trial.config, entry.outcome)
        passed = [entry for entry in finals.entries if entry.outcome.status is Status.PASSED]
        if passed or not waiting:
            break
    passed.sort(key=lambda entry: statistics.median(entry.samples_us))
    winner = _decide(plan, passed, finals, seed)
    winner.certificate.update(study=name, trials=study.done, failures=study.failures(), ended=str(ended))
    artifact = None
    if winner.artifact is not None:
        artifact = passed[0].candidate.artifact
        winner.certificate["near"] = _near(winner, passed[0].candidate, worker, near_s)
    store.promote(
        winner,
        source=artifacts.read_source(artifact) if artifact else None,
        binary=Path(artifact.binary).read_bytes() if artifact else None,
        log=artifacts.read_log(artifact) if artifact else "",
        environment=finals.environment,
    )
    return winner


def _near(winner: Winner, candidate: Candidate, worker: Worker, budget_s: float) -> list[list[float]]:
    """How fast the winner is around its own number of rows, as far as `budget_s` goes: pairs of a number of
    rows and the speed-up over PyTorch, in order. The nearest come first, and what would take too long not."""
    own, began = winner.workload.rows, time.monotonic()
    points = {own: winner.speedup}
    for rows in (own // 2, 2 * own, own // 4, 4 * own):
        left_s = budget_s - (time.monotonic() - began)
        needed_s = _NEAR_CALLS * (winner.time_us + winner.baseline_us) * max(1.0, rows / own) / 1e6
        if 1 <= rows <= candidate.launch.most_rows and needed_s < left_s:
            found = worker.nearby(candidate, rows, left_s / 2)
            if found is not None:
                points[rows] = found.speedup
    return [[rows, points[rows]] for rows in sorted(points)]


def _finalists(study: Study, ranked: list[Trial]) -> list[Trial]:
    """The best few, and the family's first guess: tuned must not be slower than untuned."""
    chosen = ranked[:FINALISTS]
    return [*chosen, *(trial for trial in ranked[FINALISTS:] if trial is study.trials[0])]


def _compiled(plan: Plan, trials: Sequence[Trial], pool: CompilePool) -> list[Candidate]:
    """From the cache, or again where they come from an earlier run and the cache was emptied."""
    pool.completed(wait_for_all=True)
    for trial in trials:
        pool.submit(trial.number, plan.render(trial.config))
    built = {build.tag: build.artifact for build in pool.completed(wait_for_all=True)}
    candidates = []
    for trial in trials:
        artifact = built[trial.number]
        if artifact is None:
            raise KsearchError(
                f"trial {trial.number} compiled before and does not now; has the compiler changed?"
            )
        candidates.append(plan.candidate(trial.config, artifact))
    return candidates


def _decide(plan: Plan, ranked: Sequence[FinalEntry], finals: Finals, seed: int) -> Winner:
    """The fastest finalist if it surely beats PyTorch, else PyTorch."""
    baseline_us, ceiling_us = statistics.median(finals.baseline_us), statistics.median(finals.ceiling_us)
    certificate: dict[str, Any] = {
        "seed": seed,
        "baseline_samples_us": finals.baseline_us,
        "ceiling_samples_us": finals.ceiling_us,
    }
    kernel: Candidate | None = None
    time_us = baseline_us
    if ranked:
        best = ranked[0]
        best_us = statistics.median(best.samples_us)
        low, high = bootstrap_ci(finals.baseline_us, best.samples_us, seed)
        certificate |= _evidence(best, (low, high), ranked, seed)
        if way := plan.way(best.candidate.config):
            certificate |= {"products": way, "product_errors": dict(plan.way_errors)}
            certificate["barred_products"] = dict(plan.barred_ways)
        if ceiling_us > (_SUSPICIOUS_LINEAR if plan.workload.inner else _SUSPICIOUS) * best_us:
            certificate["alarm"] = (
                f"{ceiling_us / best_us:.2f} times the speed of the ceiling: is the machine quiet?"
            )
        if low > 1.0:
            kernel, time_us = best.candidate, best_us
    return Winner(
        workload=plan.workload,
        target=plan.target,
        config=kernel.config if kernel else None,
        launch=kernel.launch if kernel else None,
        artifact=kernel.artifact.digest if kernel else None,
        time_us=time_us,
        baseline_us=baseline_us,
        ceiling_us=ceiling_us,
        certificate=certificate,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _evidence(
    best: FinalEntry, interval: tuple[float, float], ranked: Sequence[FinalEntry], seed: int
) -> dict[str, Any]:
    artifact = best.candidate.artifact
    facts: dict[str, Any] = {
        "fastest_config": best.candidate.config,
        "samples_us": best.samples_us,
        "spread_us": best.outcome.spread_us,
        "speedup_ci": list(interval),
        "error": best.outcome.error,
        "errors": {
            regime: {"kernel": error.candidate, "pytorch": error.baseline}
            for regime, error in best.errors.items()
        },
        "registers": artifact.registers,
        "spill_bytes": artifact.spill_bytes,
        "source_key": artifact.key,
    }
    if len(ranked) > 1:
        facts["runner_up_config"] = ranked[1].candidate.config
        facts["over_runner_up_ci"] = list(bootstrap_ci(ranked[1].samples_us, best.samples_us, seed))
    return facts

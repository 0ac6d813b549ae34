"""The final: race the best few against PyTorch, keep the fastest that is right, with the evidence.

PyTorch itself is always a finalist. Where nothing surely beats it, that is what the record says and
what the loader runs.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ksearch import artifacts, decision, evidence
from ksearch.certificate import Certificate, Sanitized
from ksearch.errors import KsearchError
from ksearch.evaluate.messages import Finals
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.sanitize import Sanitizer
from ksearch.evaluate.worker import Worker
from ksearch.plan import Plan
from ksearch.search import Study, Trial
from ksearch.selftest.gate import require_kills
from ksearch.stopping import Ended
from ksearch.store import Store
from ksearch.types import Candidate, Outcome, Status, Winner

FINALISTS = 6
_ENOUGH = 2
"""Right ones among them: the winner and the runner-up. To check all six took 6 s more at 4096x393216."""
_NEAR_CALLS = 8
"""Of the kernel and of PyTorch, that measuring another number of rows takes at least."""


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
    sanitizer: Sanitizer | None = None,
) -> Winner:
    """Race the finalists, check the fastest on the whole workload, and put the winner into the store.

    For `near_s` seconds the winner then runs on other numbers of rows, so that it may be used there. With a
    `sanitizer` those that it finds an error in do not race. Those that fail here, or are faster than can be
    believed, are recorded with what they failed at; where no finalist is right the next best race.
    """

    def fail(trial: Trial, outcome: Outcome) -> None:
        trial.outcome = outcome
        store.record(plan.workload, plan.target, name, trial.number, trial.config, outcome)

    waiting = study.best(len(study.trials))
    order = functools.partial(decision.preference, seed=seed)
    while True:
        racing = _finalists(study, waiting)
        waiting = [trial for trial in waiting if trial not in racing]
        compiled = zip(racing, _compiled(plan, racing, pool), strict=True)
        entered, sanitized = _sanitized(list(compiled), sanitizer, fail)
        candidates = [candidate for _, candidate in entered]
        finals = worker.finals(candidates, budget_s=budget_s, enough=_ENOUGH, order=order)
        finals = replace(finals, entries=evidence.believed(plan, finals, seed))
        for (trial, _), entry in zip(entered, finals.entries, strict=True):
            if entry.outcome.status is not Status.PASSED:
                fail(trial, entry.outcome)
        passed = [entry for entry in finals.entries if entry.outcome.status is Status.PASSED]
        if any(entry.is_checked for entry in passed) or not waiting:
            break
    chosen, certificate = evidence.certify(plan, passed, finals, seed)
    certificate = replace(
        certificate,
        sanitizer=next((sanitized.get(trial.number) for trial, each in entered if each is chosen), None),
        study=name,
        trials=study.done,
        failures=study.failures(),
        ended=str(ended),
    )
    winner = _decide(plan, chosen, finals, certificate)
    artifact = None
    if chosen is not None and winner.artifact is not None:
        require_kills(plan, worker, pool, store, chosen.config)
        artifact = chosen.artifact
        near = _near(winner, chosen, worker, near_s)
        winner = replace(winner, certificate={**winner.certificate, "near": near})
    store.promote(
        winner,
        source=artifacts.read_source(artifact) if artifact else None,
        binary=Path(artifact.binary).read_bytes() if artifact else None,
        log=artifacts.read_log(artifact) if artifact else "",
        environment={**finals.environment, "compiler": plan.backend.compiler_id()},
    )
    return winner


def _sanitized(
    finalists: Sequence[tuple[Trial, Candidate]],
    sanitizer: Sanitizer | None,
    fail: Callable[[Trial, Outcome], None],
) -> tuple[list[tuple[Trial, Candidate]], dict[int, Sanitized]]:
    """Those that may race, and what was said of each by the number of its trial; `fail` gets the others."""
    if sanitizer is None:
        return list(finalists), {}
    entered, said = [], {}
    for trial, candidate in finalists:
        said[trial.number], error = sanitizer.check(candidate)
        if error:
            fail(trial, Outcome(Status.UNSAFE, message=error))
        else:
            entered.append((trial, candidate))
    return entered, said


def _near(winner: Winner, candidate: Candidate, worker: Worker, budget_s: float) -> list[list[float]]:
    """How fast the winner is around its own number of rows, as far as `budget_s` goes: pairs of a number of
    rows and the speed-up over PyTorch, in order. The nearest come first, and what would take too long not."""
    own, began = winner.workload.rows, time.monotonic()
    points = {own: winner.speedup}
    for rows in (own // 2, 2 * own, own // 4, 4 * own):
        left_s = budget_s - (time.monotonic() - began)
        needed_s = _NEAR_CALLS * (winner.time_us + winner.baseline_us) * max(1.0, rows / own) / 1e6
        if rows % winner.workload.together:
            continue
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


def _decide(plan: Plan, chosen: Candidate | None, finals: Finals, certificate: Certificate) -> Winner:
    """The chosen finalist if it surely beats PyTorch, else PyTorch."""
    baseline_us = statistics.median(finals.baseline_us)
    interval = certificate.speedup_ci
    kernel = chosen if interval is not None and interval[0] > 1.0 else None
    return Winner(
        workload=plan.workload,
        target=plan.target,
        config=kernel.config if kernel else None,
        launch=kernel.launch if kernel else None,
        artifact=kernel.artifact.digest if kernel else None,
        time_us=statistics.median(certificate.samples_us or ()) if kernel else baseline_us,
        baseline_us=baseline_us,
        ceiling_us=statistics.median(finals.ceiling_us),
        certificate=certificate.to_json(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )

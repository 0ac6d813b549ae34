"""What the final comparison says of its finalists: who is not believed, and the certificate of the best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from ksearch import decision
from ksearch.certificate import FORM, Certificate
from ksearch.decision import Entrant
from ksearch.evaluate.confidence import bootstrap_ci, half_interquartile_us
from ksearch.evaluate.messages import FinalEntry, Finals
from ksearch.plan import Plan
from ksearch.render import template_digests
from ksearch.types import Candidate, Outcome, Status, digest

_ALARMING = 1.05
"""Faster than the ceiling by this factor is an alarm: the copy was disturbed, or the check was fooled. What
is beyond belief (`decision`) is no winner at all."""
_ALARMING_LINEAR = 1.5
"""The same of a linear, whose ceiling is PyTorch's product: no wall, and not as fast in every shape."""


def believed(plan: Plan, finals: Finals, seed: int) -> list[FinalEntry]:
    """The entries, of which those that are too fast to be true have not passed."""
    entries = []
    share = decision.needed_share(plan.op, plan.workload)
    for entry in finals.entries:
        if entry.outcome.status is Status.PASSED:
            doubt = decision.beyond_belief(
                entry.samples_us,
                finals.copy_us or finals.ceiling_us,
                finals.baseline_us,
                backend=plan.target.backend,
                share=share,
                seed=seed,
            )
            if doubt:
                outcome = Outcome(Status.SUSPICIOUS, error=entry.outcome.error, message=doubt)
                entry = replace(entry, outcome=outcome, samples_us=[])  # noqa: PLW2901
        entries.append(entry)
    return entries


def certify(
    plan: Plan, passed: Sequence[FinalEntry], finals: Finals, seed: int
) -> tuple[Candidate | None, Certificate]:
    """The finalist to prefer of those that passed the full check, and all that is known of it."""
    facts = Certificate(
        form=FORM,
        seed=seed,
        baseline_samples_us=finals.baseline_us,
        baseline_spread_us=half_interquartile_us(finals.baseline_us),
        ceiling_samples_us=finals.ceiling_us,
        ceiling_spread_us=half_interquartile_us(finals.ceiling_us),
        conditions=finals.conditions or None,
    )
    if not any(entry.is_checked for entry in passed):
        return None, facts
    place, tie = decision.decide(
        [Entrant(entry.candidate, entry.samples_us, entry.is_checked) for entry in passed], seed
    )
    best = passed[place]
    others = sorted((entry for entry in passed if entry is not best), key=_median_us)
    candidate, artifact, samples = best.candidate, best.candidate.artifact, best.samples_us
    source = plan.render(candidate.config)
    facts = replace(
        facts,
        samples_us=samples,
        spread_us=best.outcome.spread_us,
        speedup_ci=list(bootstrap_ci(finals.baseline_us, samples, seed)),
        of_ceiling_ci=list(bootstrap_ci(finals.ceiling_us, samples, seed)),
        regret=decision.regret(samples, [entry.samples_us for entry in others], seed),
        fastest_config=candidate.config,
        tie=tie,
        alarm=_alarm(plan, finals, samples),
        error=best.outcome.error,
        errors=best.told_errors,
        registers=artifact.registers,
        spill_bytes=artifact.spill_bytes,
        smem_bytes=candidate.launch.smem_bytes + artifact.smem_bytes,
        source_key=artifact.key,
        source_digest=digest(source.text),
        templates=template_digests(plan.op, source),
        packing=best.packing,
    )
    if others:
        facts = replace(
            facts,
            runner_up_config=others[0].candidate.config,
            runner_up_samples_us=others[0].samples_us,
            over_runner_up_ci=list(bootstrap_ci(others[0].samples_us, samples, seed)),
        )
    if way := plan.way(candidate.config):
        facts = replace(
            facts,
            products=way,
            product_errors=dict(plan.way_errors),
            barred_products=dict(plan.barred_ways),
        )
    return candidate, facts


def _alarm(plan: Plan, finals: Finals, samples_us: Sequence[float]) -> str | None:
    ratio = statistics.median(finals.ceiling_us) / statistics.median(samples_us)
    if ratio <= (_ALARMING_LINEAR if plan.workload.inner else _ALARMING):
        return None
    return f"{ratio:.2f} times the speed of the ceiling: is the machine quiet?"


def _median_us(entry: FinalEntry) -> float:
    return statistics.median(entry.samples_us)

"""Give a worker every planted fault as if it were a candidate, and see what its check says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ksearch.errors import SelftestError
from ksearch.evaluate.messages import Finding
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.plan import Plan
from ksearch.selftest.mutants import Mutant, mutants, right_kernel, sources
from ksearch.store import Kill
from ksearch.types import Artifact, Candidate, Config, Status

_NO_WORSE = 1.25
"""Times the largest error of PyTorch, or of the right kernel, that digits may be off by and be no fault."""

_NO_WORSE_ALONE = 4.0
"""The same of one value a row, where PyTorch's own error is luck: what the policy allows."""

_ROUNDED = {"float16": 0.6 * 2.0**-10, "bfloat16": 0.6 * 2.0**-7}
"""A little more than half a unit in the last place: what the best result there is may be off by."""


def run(plan: Plan, worker: Worker, pool: CompilePool, configs: Sequence[Config]) -> tuple[Kill, ...]:
    """What became of each fault, planted in the kernel of the first of `configs` that is right by itself.

    Every mutant goes through the worker's process and through the check that candidates are screened by; what
    that lets pass, through the check of the whole workload. Raises SelftestError where a fault cannot be
    planted, or where the kernel without one is not right; RenderError, WorkerError.
    """
    reasons = []
    for config in configs:
        source = plan.render(config)
        made = [right_kernel(plan, config, source), *mutants(plan, config, source)]
        texts = sources(made)
        pool.submit("", source)
        for text, wrong in texts.items():
            pool.submit(text, wrong)
        builds = {str(build.tag): build for build in pool.completed(wait_for_all=True)}
        plain = builds.pop("").artifact
        artifacts = {text: build.artifact for text, build in builds.items()}
        bench = _Bench(plan, worker, artifacts, made[0])
        if plain is None or bench.artifact(made[0]) is None:
            reasons.append(builds[_text(made[0])].message)
            continue
        for mutant in made:
            artifact = bench.artifact(mutant)
            if mutant.source is not None and artifact is None:
                raise SelftestError(
                    f"the planted fault {mutant.fault!r} does not compile: {builds[_text(mutant)].message}"
                )
            if artifact is not None and artifact.digest == plain.digest:
                raise SelftestError(f"the planted fault {mutant.fault!r} changes nothing in the binary")
        for many in (False, True):  # of few rows what PyTorch is off by, and so what is allowed, may be luck
            finding = worker.probe(bench.candidate(made[0]), many=many)
            if finding.status is Status.PASSED:
                tried = replace(bench, many=many, right=made[0], right_finding=finding)
                return tuple(tried.kill(mutant) for mutant in made[1:])
        reasons.append(finding.message)
    raise SelftestError(
        f"no kernel of {plan.workload} on {plan.target.device} is right before a fault is planted in it: "
        + "; ".join(reasons or ["the space is empty"])
    )


def _text(mutant: Mutant) -> str:
    return mutant.source.text if mutant.source is not None else ""


@dataclass(frozen=True, slots=True)
class _Bench:
    """A worker, and the binaries of the mutants by their text."""

    plan: Plan
    worker: Worker
    artifacts: Mapping[str, Artifact | None]
    right: Mutant
    """The kernel without a fault."""
    right_finding: Finding = field(default_factory=lambda: Finding(Status.PASSED))
    many: bool = False
    """Screening takes as many rows as a candidate's does."""

    def artifact(self, mutant: Mutant) -> Artifact | None:
        return self.artifacts.get(_text(mutant))

    def candidate(self, mutant: Mutant) -> Candidate:
        artifact = self.artifact(mutant)
        assert artifact is not None
        assert mutant.launch is not None
        return Candidate(dict(mutant.config or {}), mutant.launch, artifact)

    def kill(self, mutant: Mutant) -> Kill:
        if mutant.source is None:
            return Kill(mutant.fault, "", mutant.absent)
        candidate = self.candidate(mutant)
        if not mutant.needs_whole:
            finding = self.worker.probe(candidate, mutant.host_fault, many=self.many)
            if finding.status is not Status.PASSED:
                return Kill(mutant.fault, str(finding.status), finding.message)
            if mutant.by_value and self.worker.agree(candidate, self.candidate(self.right)):
                return Kill(mutant.fault, "", "no result of the op is changed by it")
            if mutant.by_size and self._is_no_worse(finding):
                return Kill(mutant.fault, "", f"no less exact than PyTorch's {self.plan.workload.dtype}")
        finding = self.worker.probe(candidate, mutant.host_fault, whole=True)
        return Kill(mutant.fault, str(finding.status), finding.message)

    def _is_no_worse(self, finding: Finding) -> bool:
        """Whether it is off by no more than PyTorch, than the kernel without the fault, or than the exact
        result is when it is rounded, whatever the kind of the values."""
        rounded = _ROUNDED.get(self.plan.workload.dtype, 0.0)
        without = self.right_finding.errors
        factor = _NO_WORSE_ALONE if any(self.plan.program.per_row) else _NO_WORSE
        return all(
            found.candidate <= max(factor * max(found.baseline, without[regime].candidate), rounded)
            for regime, found in finding.errors.items()
        )

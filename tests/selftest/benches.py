"""What the tests of planted faults share: plans of every family, and a worker without a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ksearch import backends, families, operators
from ksearch.evaluate.messages import Finding, Job
from ksearch.evaluate.session import Session
from ksearch.plan import Plan
from ksearch.types import Candidate, Target


def plan_for(
    op: str, shape: Sequence[int], dtype: str, target: Target, policy: str = "strict", **options: str
) -> Plan:
    """Also for a GPU that is not there."""
    found = operators.resolve(op)
    workload = found.workload(tuple(shape), dtype, policy=policy, **options)
    taken = dict(workload.options)
    family = families.find(found, target.backend, **taken)
    return Plan(found, workload, target, backends.get(target.backend), family, found.program(**taken))


@dataclass
class InProcess:
    """A worker that is no process, so that a test can break the check in it."""

    job: Job
    probed: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._session = Session(self.job)

    def probe(
        self, candidate: Candidate, fault: str = "", *, whole: bool = False, many: bool = False
    ) -> Finding:
        self.probed.append(candidate)
        return self._session.probe(candidate, fault, whole, many)

    def agree(self, one: Candidate, other: Candidate) -> bool:
        return self._session.agree(one, other)

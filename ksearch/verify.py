"""Doing a winner's certificate again on this machine, and saying what no longer holds.

A stored kernel goes through the check of a candidate, in the same isolated process, and is raced again. Its
binary is the stored one: nothing is compiled.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ksearch import backends, decision, operators
from ksearch.certificate import Certificate, Conditions, disturbances
from ksearch.errors import BadShape, KsearchError, NoSuchDevice, StoreError, UsageError
from ksearch.evaluate.confidence import bootstrap_ci
from ksearch.evaluate.messages import FinalEntry, Finals, Job
from ksearch.evaluate.worker import Worker
from ksearch.operators import Op
from ksearch.plan import device_lock
from ksearch.render import render, template_digests
from ksearch.runtime.binary import place
from ksearch.store import Store
from ksearch.types import Artifact, Candidate, Status, Target, Winner, digest
from ksearch.verdicts import Finding, Kind, Measured, Verified

_RACE_S = 5.0
_EARLIER = 3
"""Former winners of a workload that are raced beside the one in force, at most."""
_REGRETTED = 1.02
"""A former winner that is faster by less is what another seed may find."""
_TELLING = ("ksearch", "torch", "cuda", "driver")
"""The versions that may change results or times of a binary that is there."""


def verify(
    store: Store,
    winners: Sequence[Winner],
    *,
    op: str | None = None,
    device: str | None = None,
    seed: int = 0,
    race_s: float = _RACE_S,
    tell: Callable[[Verified], None] | None = None,
) -> list[Verified]:
    """Check and race these winners of `store` again, one after the other; `tell` is called with each.

    `op`: location of an op of a file, `my_ops.py:swish`, whose definition is needed. `device`: `cuda:1` runs
    those for a GPU on that one. Values for checking come from `seed`. Raises UsageError, DeviceBusy,
    WorkerError, StoreError: what is not about one winner.
    """
    found = []
    for winner in winners:
        verified = _Verification(store, winner, op, device, seed, race_s).run()
        found.append(verified)
        if tell is not None:
            tell(verified)
    return found


class _Left(Exception):
    """It cannot be verified here; `str()` says why."""


class _Broken(Exception):
    """What is stored is not what was certified; `str()` says why."""


@dataclass
class _Verification:
    store: Store
    winner: Winner
    op: str | None
    device: str | None
    seed: int
    race_s: float
    findings: list[Finding] = field(default_factory=list)

    def run(self) -> Verified:
        measured = None
        try:
            op, target = self._op(), self._target()
            candidates = self._candidates(target)
            self._compare_templates(op, target)
            with device_lock(target):
                measured = self._measure(op, target, candidates)
        except (_Left, BadShape) as reason:
            self._find(Kind.LEFT, str(reason))
        except _Broken as reason:
            self._find(Kind.DIGEST, str(reason))
        return Verified(self.winner, tuple(self.findings), measured)

    def _find(self, kind: Kind, message: str) -> None:
        self.findings.append(Finding(kind, message))

    # Before anything runs

    def _op(self) -> Op:
        """Raises _Left where the op is not known here, or computes something else today."""
        workload = self.winner.workload
        try:
            op = operators.resolve(self.op or workload.op)
            today = op.workload(
                workload.dims,
                workload.dtype,
                policy=workload.policy,
                prepacked=workload.is_prepacked,
                **dict(workload.options),
            )
        except UsageError as error:
            if self.op is not None:
                raise
            raise _Left(f"{error}; an op of a file is named with it: FILE.py:{workload.op}") from None
        if today.key != workload.key:
            raise _Left(
                "the definition of the op has changed since: no call finds this winner; tune it again"
            )
        return op

    def _target(self) -> Target:
        """The device of this machine to run it on. Raises _Left where there is none that could."""
        theirs = self.winner.target
        asked, index = backends.parse_device(self.device) if self.device else (theirs.backend, 0)
        try:
            ours = backends.get(theirs.backend).target(index if asked == theirs.backend else 0)
        except NoSuchDevice:
            raise _Left(f"it is for {theirs.device}, and there is no {theirs.backend} device here") from None
        if ours.arch != theirs.arch:
            raise _Left(f"it is for {theirs.device} ({theirs.arch}), and this is {ours.device} ({ours.arch})")
        if ours.key != theirs.key:
            self._find(Kind.DEVICE, f"measured on {theirs.device}, and this is {ours.device}")
        return ours

    def _candidates(self, target: Target) -> list[Candidate]:
        """The kernel, if there is one, then former ones. Raises _Broken where a digest says not to run it."""
        if self.winner.artifact is None:
            return []
        try:
            known = Certificate.read(self.winner.certificate)
            stored = self.store.artifact(self.winner.artifact)
        except StoreError as error:  # its binary has another SHA-256 than the winner, for one
            raise _Broken(str(error)) from error
        if stored is None:
            raise _Broken("its binary is missing")
        if known.source_digest not in (None, digest(stored.source)):
            raise _Broken("its source is not the one that was compiled (the SHA-256 differs)")
        candidates = [self._candidate(self.winner, stored.binary, target)]
        for former in self._former() if target.key == self.winner.target.key else ():
            with contextlib.suppress(StoreError):  # a damaged one is no rival
                binary = self.store.artifact(str(former.artifact))
                if binary is not None:
                    candidates.append(self._candidate(former, binary.binary, target))
        return candidates

    def _former(self) -> list[Winner]:
        """Other kernels that were in force for the workload, the last first."""
        history = self.store.history(self.winner.workload, self.winner.target)
        kernels = {w.artifact: w for w in reversed(history) if w.artifact not in (None, self.winner.artifact)}
        return list(kernels.values())[:_EARLIER]

    def _candidate(self, winner: Winner, binary: bytes, target: Target) -> Candidate:
        assert winner.launch is not None
        name = digest(binary)
        path = place(binary, name, backends.get(target.backend).extension)
        return Candidate(dict(winner.config or {}), winner.launch, Artifact("", "", str(path), name))

    def _compare_templates(self, op: Op, target: Target) -> None:
        known = Certificate.read(self.winner.certificate).templates
        if known is None or self.winner.config is None:
            return
        try:
            today = template_digests(op, render(op, self.winner.workload, self.winner.config, target))
        except KsearchError as error:
            self._find(Kind.TEMPLATES, f"today's do not render its config: {error}")
            return
        changed = sorted(name for name in known.keys() | today.keys() if known.get(name) != today.get(name))
        if changed:
            self._find(Kind.TEMPLATES, f"changed since: {', '.join(changed)}; the kernel is of older ones")

    # What is measured

    def _measure(self, op: Op, target: Target, candidates: list[Candidate]) -> Measured:
        with Worker(Job(op.location, self.winner.workload, target, self.seed)) as worker:
            worker.start()
            if candidates:
                screened = worker.screen(candidates[0])
                if screened.status is not Status.PASSED:
                    self._find(Kind.WRONG, f"{screened.status}: {screened.message}")
                    candidates = []
            # The kernel is checked on the whole workload; former ones are only raced.
            finals = worker.finals(
                candidates, budget_s=self.race_s, enough=1, order=lambda found, _: list(range(len(found)))
            )
        environment = self.store.environment(self.winner.workload, self.winner.target)
        self._compare_versions(environment, finals.environment)
        self._compare_conditions(target, finals.conditions)
        baseline_us, ceiling_us = statistics.median(finals.baseline_us), statistics.median(finals.ceiling_us)
        time_us, interval = baseline_us, None
        own: FinalEntry | None = None
        if finals.entries and finals.entries[0].outcome.status is not Status.PASSED:
            outcome = finals.entries[0].outcome
            self._find(Kind.WRONG, f"{outcome.status} on the whole workload: {outcome.message}")
        elif finals.entries:
            own = finals.entries[0]
            time_us = statistics.median(own.samples_us)
            interval = bootstrap_ci(finals.baseline_us, own.samples_us, self.seed)
            self._judge(op, target, own, finals, interval)
        return Measured(
            time_us=time_us,
            baseline_us=baseline_us,
            ceiling_us=ceiling_us,
            speedup_ci=interval,
            error=own.outcome.error if own else None,
            errors=own.told_errors if own else {},
            environment=finals.environment,
            conditions=finals.conditions,
        )

    def _judge(
        self, op: Op, target: Target, own: FinalEntry, finals: Finals, interval: tuple[float, float]
    ) -> None:
        """What the samples say of the certified speed."""
        doubt = decision.beyond_belief(
            own.samples_us,
            finals.copy_us or finals.ceiling_us,
            finals.baseline_us,
            backend=target.backend,
            share=decision.needed_share(op, self.winner.workload),
            seed=self.seed,
        )
        if doubt:
            self._find(Kind.SUSPICIOUS, doubt)
        low, high = interval
        if high < 1.0:
            self._find(Kind.PYTORCH, f"{low:.3f}x to {high:.3f}x its speed, with 95 % confidence")
        elif low <= 1.0:
            self._find(Kind.UNSURE, f"{low:.3f}x to {high:.3f}x the speed of PyTorch: not told apart from it")
        certified = Certificate.read(self.winner.certificate).speedup_ci
        if certified is not None and target.key == self.winner.target.key and high < certified[0]:
            self._find(
                Kind.CERTIFIED,
                f"{low:.3f}x to {high:.3f}x the speed of PyTorch, and certified are {certified[0]:.3f}x to "
                f"{certified[1]:.3f}x",
            )
        raced = [entry for entry in finals.entries[1:] if entry.outcome.status is Status.PASSED]
        leads = [bootstrap_ci(own.samples_us, each.samples_us, self.seed) for each in raced]
        if leads and max(leads)[0] > _REGRETTED:
            least, most = max(leads)
            self._find(
                Kind.REGRET, f"a former winner is {least:.3f}x to {most:.3f}x as fast, with 95 % confidence"
            )

    def _compare_versions(self, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
        changed = [
            f"{name} {theirs[name]}, now {ours[name]}"
            for name in _TELLING
            if name in theirs and name in ours and theirs[name] != ours[name]
        ]
        if changed:
            self._find(Kind.VERSIONS, f"measured under {'; '.join(changed)}")

    def _compare_conditions(self, target: Target, found: Sequence[Conditions]) -> None:
        """What makes today's times say little."""
        if disturbed := disturbances(found, target):
            self._find(Kind.CONDITIONS, ", ".join(disturbed))

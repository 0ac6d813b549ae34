"""The parent's side of the isolated worker: whatever a candidate does, an Outcome comes back.

The parent never creates a CUDA context. A candidate that hangs, crashes or damages memory costs the
child process, and a spare one that has imported torch already takes over.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ksearch.errors import KsearchError, WorkerError
from ksearch.evaluate.confidence import half_interquartile_us
from ksearch.evaluate.messages import DAMAGED, FinalEntry, Finals, Finding, Job, Laps, Nearby, Ready
from ksearch.evaluate.process import Child, ChildDied, ChildError, ChildTimeout
from ksearch.types import Candidate, Outcome, Status

_TARGET = "ksearch.evaluate.session:open_session"
_START_S = 600.0
"""Importing torch from a cold disk, making and checking references of many gigabytes on a slow CPU."""
_ATTEMPTS = 3
_PROOF_S = 1.0
"""Budget for racing a finalist alone, after a race that one of them broke."""


Order: TypeAlias = Callable[[Sequence[Candidate], Sequence[Sequence[float]]], list[int]]
"""From candidates and their samples in microseconds: places, in the order in which to check them."""


def warm() -> Child:
    """A process that begins to import torch now: for a Worker, and to be closed by who made it."""
    return Child(_TARGET)


class Worker:
    """One device's candidates, screened one by one and then compared; use it as a context manager.

    `timeout_s` is what a candidate gets beside a multiple of PyTorch's own time. `spare` is a process from
    `warm`, which this then owns. Call it from a thread that outlives it (see `Child`).
    """

    def __init__(self, job: Job, timeout_s: float = 20.0, spare: Child | None = None) -> None:
        self._job = job
        self._timeout_s = timeout_s
        self._baseline_s = 0.0
        self._child: Child | None = None
        self._spare = spare
        self.respawns = 0
        """How often a candidate cost the process."""

    def start(self) -> Ready:
        """Open the session, and time PyTorch and the ceiling. Raises WorkerError, or what is wrong with the
        job (BadShape, UserFileError, ...)."""
        self._open()
        try:
            self._quiet()
            ready: Ready = self._ask(("start",), _START_S)
        except (ChildDied, ChildTimeout, ChildError) as error:
            raise WorkerError(f"the worker failed while timing PyTorch's own function: {error}") from error
        self._baseline_s = ready.baseline_us / 1e6
        return ready

    def screen(self, candidate: Candidate, incumbent_us: float | None = None) -> Outcome:
        """Check a candidate and time it; with an incumbent's time, not for long if it is clearly slower."""
        # The check alone runs it a dozen times, and one that is 20 times slower is worth knowing.
        message, limit_s = ("screen", candidate, incumbent_us), self._timeout_s + 300 * self._baseline_s
        finding = self._find(message, limit_s)
        if finding.message == DAMAGED:  # by this one, or by one before it: a new process tells
            finding = self._find(message, limit_s)
        timing = finding.timing
        return Outcome(
            finding.status,
            time_us=timing.time_us if timing else None,
            spread_us=timing.spread_us if timing else 0.0,
            repeats=timing.repeats if timing else 0,
            error=finding.error,
            message=finding.message,
            check_s=finding.check_s,
        )

    def probe(
        self, candidate: Candidate, fault: str = "", *, whole: bool = False, many: bool = False
    ) -> Finding:
        """What the check makes of a planted wrong kernel; see `Session.probe`. It is not timed."""
        return self._find(("probe", candidate, fault, whole, many), self._timeout_s + 600 * self._baseline_s)

    def agree(self, one: Candidate, other: Candidate) -> bool:
        """Whether two right candidates give the same bits on all that screening tries. Raises WorkerError."""
        try:
            same: bool = self._ask(("agree", one, other), self._timeout_s + 300 * self._baseline_s)
        except (ChildTimeout, ChildDied, ChildError) as error:
            raise WorkerError(f"two kernels that passed cannot be compared: {error}") from error
        return same

    def finals(
        self,
        candidates: Sequence[Candidate],
        *,
        budget_s: float,
        enough: int | None = None,
        order: Order | None = None,
    ) -> Finals:
        """Race them against PyTorch and the ceiling; check them on the whole workload in `order`, by default
        the fastest first.

        With `enough` no more are checked once so many are right: float64 in blocks takes far longer than a
        race. Of the others is known what screening found, and their entries have no errors.
        """
        findings = [Finding(Status.PASSED) for _ in candidates]
        laps = self.race(candidates, budget_s)
        passed = list(range(len(candidates)))
        if isinstance(laps, Finding):  # one of them is fine in screening and not here: find out which
            for index, candidate in enumerate(candidates):
                alone = self.race([candidate], min(_PROOF_S, budget_s))
                if isinstance(alone, Finding):
                    findings[index] = alone
            passed = [index for index in passed if findings[index].status is Status.PASSED]
            laps = self.race([candidates[index] for index in passed], budget_s)
            if isinstance(laps, Finding):
                raise WorkerError(f"the final comparison fails, each finalist alone does not: {laps.message}")
        samples = dict(zip(passed, laps.candidates_us, strict=True))
        packings = dict(zip(passed, laps.packings, strict=False))  # of a prepacked workload alone
        places = (order or _fastest_first)([candidates[index] for index in passed], laps.candidates_us)
        checked: set[int] = set()
        right = 0
        for index in (passed[place] for place in places):
            if enough is not None and right >= enough:
                break
            findings[index] = self._verify(candidates[index])
            checked.add(index)
            right += findings[index].status is Status.PASSED
        entries = []
        for index, (candidate, finding) in enumerate(zip(candidates, findings, strict=True)):
            mine = samples[index] if finding.status is Status.PASSED else []
            outcome = _final_outcome(finding, mine)
            facts = (finding.errors, index in checked, packings.get(index))
            entries.append(FinalEntry(candidate, outcome, mine, *facts))
        return Finals(
            entries, laps.baseline_us, laps.ceiling_us, laps.environment, laps.copy_us, laps.conditions
        )

    def _verify(self, candidate: Candidate) -> Finding:
        # Float64 in blocks takes far longer than the op itself, mostly so on a CPU.
        limit_s = 3 * self._timeout_s + 600 * self._baseline_s
        finding = self._find(("verify", candidate), limit_s)
        if finding.status is Status.OUT_OF_BOUNDS:
            # In a new process: what another one damaged in the race must not count against it.
            finding = self._find(("verify", candidate), limit_s)
        return finding

    def race(self, candidates: Sequence[Candidate], budget_s: float) -> Laps | Finding:
        """Time them against PyTorch and the ceiling, in paired rounds; a Finding says what broke it."""
        # Three rounds are run however long they take, and PyTorch is in each.
        limit_s = budget_s + self._timeout_s + 40 * (len(candidates) + 2) * self._baseline_s
        try:
            laps: Laps = self._ask(("race", list(candidates), budget_s), limit_s)
        except ChildTimeout:
            return Finding(Status.TIMEOUT, f"did not finish within {limit_s:.3g} s", healthy=False)
        except ChildDied as death:
            return Finding(Status.CRASHED, str(death), healthy=False)
        except ChildError as error:  # a CUDA error: the session stands but its device context may not
            self._drop()
            return Finding(Status.CRASHED, str(error), healthy=False)
        return laps

    def nearby(self, candidate: Candidate, rows: int, budget_s: float) -> Nearby | None:
        """A winner on another number of rows; None where there is no room for them."""
        limit_s = budget_s + self._timeout_s + 40 * self._baseline_s * rows / self._job.workload.rows
        try:
            found: Nearby | None = self._ask(("nearby", candidate, rows, budget_s), limit_s)
        except (ChildTimeout, ChildDied):
            return Nearby(rows, 0.0)
        except ChildError:  # a CUDA error: the session stands but its device context may not
            self._drop()
            return Nearby(rows, 0.0)
        return found

    def _find(self, message: tuple[object, ...], limit_s: float) -> Finding:
        try:
            finding: Finding = self._ask(message, limit_s)
        except ChildTimeout:
            return Finding(Status.TIMEOUT, f"did not finish within {limit_s:.3g} s", healthy=False)
        except ChildDied as death:
            return Finding(Status.CRASHED, str(death), healthy=False)
        except ChildError as error:
            raise WorkerError(f"the worker failed on its own account: {error}\n{error.log}") from error
        if not finding.healthy:
            self._drop()
        return finding

    # Processes

    def _ask(self, message: tuple[object, ...], limit_s: float) -> Any:
        """The session's answer; where its process is killed meanwhile that of another, because no candidate
        kills its process so. Twice is no accident: one that takes all memory is ended by the system."""
        try:
            return self._session().call(message, limit_s)
        except ChildDied as death:
            if not death.by_force:
                raise
        return self._session().call(message, limit_s)

    def _session(self) -> Child:
        """The child with an open session; a new one where the last candidate cost it."""
        if self._child is not None and self._child.is_alive:
            return self._child
        self._drop()
        self.respawns += 1
        child = self._open()
        self._quiet()
        return child

    def _quiet(self) -> None:
        """On a CPU, the spare's import of torch would slow down what is timed next."""
        if self._job.target.backend == "cpu":
            self._ready_spare()

    def _open(self) -> Child:
        """Take the spare, or start a process, and open the session in it; start the next spare."""
        reason = ""
        for _ in range(_ATTEMPTS):
            child = self._spare or Child(_TARGET)
            self._child, self._spare = child, Child(_TARGET)
            try:
                child.call(("open", self._job), _START_S)
            except (ChildDied, ChildTimeout, ChildError) as error:
                reason = str(error)
                self._drop()
            except (KsearchError, OSError):
                self.close()
                raise
            else:
                return child
        self.close()
        raise WorkerError(f"the worker for {self._job.target.device} cannot be started: {reason}")

    def _ready_spare(self) -> None:
        """Wait until the spare has imported torch; without one, a respawn is only slower."""
        if self._spare is not None:
            try:
                self._spare.call(None, _START_S)
            except (ChildDied, ChildTimeout, ChildError):
                self._spare.kill()
                self._spare = None

    def _drop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """End both processes; harmless when repeated."""
        self._drop()
        if self._spare is not None:
            self._spare.kill()
            self._spare = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fastest_first(candidates: Sequence[Candidate], samples_us: Sequence[Sequence[float]]) -> list[int]:
    return sorted(range(len(candidates)), key=lambda place: statistics.median(samples_us[place]))


def _final_outcome(finding: Finding, samples_us: Sequence[float]) -> Outcome:
    if finding.status is not Status.PASSED:
        return Outcome(finding.status, error=finding.error, message=finding.message)
    spread_us = half_interquartile_us(samples_us)
    return Outcome(Status.PASSED, statistics.median(samples_us), spread_us, len(samples_us), finding.error)

"""Which finalist wins, what cannot be told apart from it, and what is too fast to be believed.

Plain arithmetic on the samples of the final comparison; nothing here measures or compiles.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ksearch.certificate import Finalist, Tie
from ksearch.evaluate.confidence import bootstrap_ci
from ksearch.launch import Launch
from ksearch.operators import Op
from ksearch.operators.cost import cost_of, element_counts
from ksearch.types import Candidate, Workload

_CLOSE = 1.005
"""Only members of a tie within this factor of the fastest may be preferred to it. Few or noisy rounds make
wide intervals, and for fewer registers nobody gives up 2 %; two runs of one kernel differ by 0.2 %."""

_BEYOND = {"cuda": 1.25, "cpu": 1.6}
"""Faster than what bounds every kernel by more than this factor is not believed.

The bound is a copy, which a right kernel may beat: by 1.046 at most in 102 rows of an H200 (rmsnorm
32768x256 bfloat16), and by more where it reads far more than it writes, because a memory bus that turns
around less often moves more. A CPU's copy may read the lines that it writes, too: three transfers, where
streaming stores take two, which is 1.5."""
_SLACK_US = {"cuda": 2.0, "cpu": 5.0}
"""And by more than this: starting a copy may cost more than starting a kernel."""

_CRITERIA = ("registers", "shared memory", "simplicity", "time")


@dataclass(frozen=True, slots=True)
class Entrant:
    """A finalist with its samples."""

    candidate: Candidate
    samples_us: Sequence[float]
    may_win: bool = True
    """It passed the full check; else it is only told whether it can be told apart."""

    @property
    def time_us(self) -> float:
        return statistics.median(self.samples_us)

    @property
    def facts(self) -> Finalist:
        launch, artifact = self.candidate.launch, self.candidate.artifact
        smem_bytes = launch.smem_bytes + artifact.smem_bytes
        return Finalist(
            dict(self.candidate.config), self.time_us, artifact.registers, smem_bytes, _mechanisms(launch)
        )

    @property
    def cost(self) -> tuple[float, ...]:
        """What a tie is broken by, in the order of _CRITERIA."""
        facts = self.facts
        return facts.registers, facts.smem_bytes, facts.mechanisms, facts.time_us


def decide(entrants: Sequence[Entrant], seed: int) -> tuple[int, Tie]:
    """The place of the one to prefer, and the tie that it is of.

    Among those that the samples cannot tell apart from the fastest, and that are close to it, the one with
    the fewest registers, then the least shared memory, then the simplest launch, then the fastest.
    """
    able = [place for place, each in enumerate(entrants) if each.may_win]
    fastest = min(able, key=lambda place: entrants[place].time_us)
    best = entrants[fastest]
    tied = [place for place, each in enumerate(entrants) if place == fastest or _is_alike(best, each, seed)]
    close = [place for place in tied if place in able and entrants[place].time_us <= _CLOSE * best.time_us]
    first, *others = sorted(close, key=lambda place: entrants[place].cost)
    broken_by = ""
    if len(tied) > 1:
        broken_by = _CRITERIA[-1]  # of those that are not close, too
        if others:
            pairs = zip(entrants[first].cost, entrants[others[0]].cost, _CRITERIA, strict=True)
            broken_by = next((name for mine, theirs, name in pairs if mine != theirs), broken_by)
    rest = sorted((place for place in tied if place != first), key=lambda place: entrants[place].time_us)
    return first, Tie(tuple(entrants[place].facts for place in (first, *rest)), broken_by)


def preference(
    candidates: Sequence[Candidate], samples_us: Sequence[Sequence[float]], seed: int
) -> list[int]:
    """The order in which they are worth a full check: the one to prefer, then the others by time."""
    entrants = [Entrant(*pair) for pair in zip(candidates, samples_us, strict=True)]
    by_time = sorted(range(len(entrants)), key=lambda place: entrants[place].time_us)
    if not by_time:
        return []
    first, _ = decide(entrants, seed)
    return [first, *(place for place in by_time if place != first)]


def regret(chosen: Sequence[float], others: Sequence[Sequence[float]], seed: int) -> float:
    """By how much one of the others may be faster at most, with 95 % confidence; 0.0 for not at all."""
    return max([0.0, *(bootstrap_ci(chosen, each, seed)[1] - 1.0 for each in others)])


def needed_share(op: Op, workload: Workload) -> float:
    """Of the bytes of all tensors, those that any right kernel must move.

    Not an input that the function does not use; of an op with its own template only the results are sure.
    """
    program = op.program(**dict(workload.options))
    needed = cost_of(program, workload).bytes
    counts = element_counts(workload.rows, workload.cols, workload.inner, workload.channels)
    sizes = {item.name: counts[item.role] * workload.itemsize for item in program.inputs}
    if op.template_op is not None:
        return 1.0 - sum(sizes.values()) / needed
    read = {str(node.args[0]) for node in program.nodes if node.op == "input"}
    operands = {item.name for item in program.inputs if item.role.is_operand}
    return needed / (needed + sum(size for name, size in sizes.items() if name not in read | operands))


def beyond_belief(
    samples_us: Sequence[float],
    copy_us: Sequence[float],
    baseline_us: Sequence[float],
    *,
    backend: str,
    share: float,
    seed: int,
) -> str:
    """Why so fast a kernel is not believed; empty where it may be.

    `copy_us` is of a copy of all tensors, of which `share` is needed. Where PyTorch, which is right by
    definition, is faster than the copy, that bounds nothing, and PyTorch's time takes its place.
    """
    bound_us = min(statistics.median(copy_us) * share, statistics.median(baseline_us))
    time_us, factor = statistics.median(samples_us), _BEYOND[backend]
    if bound_us <= factor * time_us + _SLACK_US[backend]:
        return ""
    scale = bound_us / statistics.median(copy_us)
    low, _ = bootstrap_ci([scale * each for each in copy_us], samples_us, seed)
    if low <= factor:
        return ""
    return (
        f"{time_us:.4g} us is {bound_us / time_us:.2f} times the speed at which the bytes that it must move "
        f"are copied ({bound_us:.4g} us): it skips work and no check saw it, or the machine is not quiet"
    )


def _is_alike(best: Entrant, other: Entrant, seed: int) -> bool:
    return bootstrap_ci(other.samples_us, best.samples_us, seed)[0] <= 1.0


def _mechanisms(launch: Launch) -> int:
    used = (
        launch.cluster > 1,
        launch.split > 1,
        launch.persistent,
        launch.workspace_bytes,
        launch.scratch_bytes,
        launch.maps,
        launch.torch_product,
        *launch.before,
        *launch.after,
    )
    return sum(map(bool, used))

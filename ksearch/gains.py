"""Where tuning would pay most: the microseconds that lie between what runs today and the ceiling.

Of a winner that is its time less the ceiling's. Of a workload that a program was seen to call, and that
nothing was tuned for, both are estimated from the nearest winner on the same device, in proportion to the
bytes of the result (of a linear, to its products); PyTorch runs it today.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ksearch import operators
from ksearch.errors import KsearchError
from ksearch.store import Store, narrowed
from ksearch.store.narrowed import Filter
from ksearch.study import Entry, StudyFile
from ksearch.types import Target, Winner, Workload

State = Literal["kernel", "pytorch", "untuned"]


@dataclass(frozen=True, slots=True)
class Gain:
    """What is to be gained of one workload on one device."""

    workload: Workload
    target: Target
    calls: int
    """1 where nobody counted."""
    time_us: float | None
    """Of one call, of what runs today; None where nothing comparable was measured."""
    ceiling_us: float | None
    state: State
    """What runs: a kernel; PyTorch, as nothing surely beats it; PyTorch, as nothing was tuned (estimated)."""

    @property
    def gain_us(self) -> float | None:
        """Of all calls; never less than nothing: a linear may be beyond its ceiling."""
        if self.time_us is None or self.ceiling_us is None:
            return None
        return self.calls * max(0.0, self.time_us - self.ceiling_us)

    @property
    def percent_of_ceiling(self) -> float | None:
        return 100 * self.ceiling_us / self.time_us if self.time_us and self.ceiling_us else None


@dataclass(frozen=True, slots=True)
class Gains:
    """Where tuning would pay most, and how much it could in all."""

    found: tuple[Gain, ...]
    """Largest gain first."""
    total_us: float
    """Of all that count, listed or not."""
    left_out: tuple[str, ...] = ()
    """What cannot be told, and why."""


def of_winners(store: Store, asked: Filter, most: int | None = None) -> Gains:
    """The `most` winners that are farthest from their ceiling, by one call of each."""
    found = [_of_winner(winner, 1) for winner in narrowed.listed(store, asked, "gain", most)]
    return Gains(tuple(gain for gain in found if gain.gain_us), narrowed.total_gain_us(store, asked))


def of_study(store: Store, study: StudyFile, asked: Filter) -> Gains:
    """Every workload of a study on each device of the database.

    Where the study names a device, and `asked` none, it is that one. With `since` or `status` only winners
    count.
    """
    device = asked.device or (None if study.device in (None, "auto") else study.device)
    targets = narrowed.targets(store, device)
    workloads, left_out = _workloads(study.entries, asked)
    keys = frozenset(workload.key for workload, _ in workloads)
    narrowing = Filter(keys=keys, device=device, since=asked.since, status=asked.status)
    winners = {
        (winner.workload.key, winner.target.key): winner for winner in narrowed.listed(store, narrowing)
    }
    gains = []
    for workload, calls in workloads:
        for target in targets:
            winner = winners.get((workload.key, target.key))
            if winner is not None:
                gains.append(_of_winner(winner, calls))
            elif asked.since is None and asked.status is None:
                gains.append(_estimated(store, workload, target, calls))
    gains.sort(key=lambda gain: (gain.gain_us is None, -(gain.gain_us or 0.0), str(gain.workload)))
    return Gains(tuple(gains), sum(gain.gain_us or 0.0 for gain in gains), tuple(left_out))


def _workloads(entries: Sequence[Entry], asked: Filter) -> tuple[list[tuple[Workload, int]], list[str]]:
    found, left_out = [], []
    for entry in entries:
        if asked.op not in (None, entry.name) or asked.dtype not in (None, entry.dtype):
            continue
        try:
            if entry.needs:
                raise KsearchError(f"needs {entry.needs}")
            op = operators.resolve(entry.op)
            options = dict(entry.options)
            workload = op.workload(
                entry.shape, entry.dtype, policy=entry.policy, prepacked=entry.prepacked, **options
            )
            found.append((workload, entry.calls or 1))
        except KsearchError as error:
            left_out.append(f"{entry}: {error}")
    return found, left_out


def _of_winner(winner: Winner, calls: int) -> Gain:
    state: State = "pytorch" if winner.config is None else "kernel"
    return Gain(winner.workload, winner.target, calls, winner.time_us, winner.ceiling_us, state)


def _estimated(store: Store, workload: Workload, target: Target, calls: int) -> Gain:
    near = narrowed.nearest(store, workload, target)
    if near is None:
        return Gain(workload, target, calls, None, None, "untuned")
    ratio = _size(workload) / _size(near.workload)
    return Gain(workload, target, calls, ratio * near.baseline_us, ratio * near.ceiling_us, "untuned")


def _size(workload: Workload) -> int:
    return workload.numel * max(1, workload.inner) * workload.itemsize

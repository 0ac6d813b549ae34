"""Which kernel that was tuned for something else answers: by the region that was measured around it, and by
the architecture that it was compiled for."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from ksearch.types import Target, Workload


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A kernel that won for another workload or on another device, without its binary."""

    workload: Workload
    target: Target
    """As far as its key tells."""
    speedup: float
    most_rows: int
    """`Launch.most_rows`."""
    near: Sequence[Sequence[float]]
    """Pairs of a number of rows and how fast it was there, in times PyTorch; 0 where it was wrong."""

    def speedup_at(self, rows: int) -> float:
        """What is to be expected there, in times PyTorch; 0 where that is not known.

        Between two numbers of rows that were measured it is the lesser of theirs: a kernel's time goes in
        steps, but over a factor of two none was seen to lose what it gained at both ends.
        """
        own = self.workload.rows
        if rows != own and rows > self.most_rows:
            return 0.0
        points = sorted({**{int(count): ratio for count, ratio in self.near}, own: self.speedup}.items())
        counts = [count for count, _ in points]
        place = bisect_left(counts, rows)
        if place < len(points) and counts[place] == rows:
            return points[place][1]
        if place in (0, len(points)):
            return 0.0
        return min(points[place - 1][1], points[place][1])


def nearest(found: Iterable[Neighbour], workload: Workload, target: Target) -> Neighbour | None:
    """Of kernels for another number of rows the one to use: not slower than PyTorch on both sides."""
    best: tuple[float, float] | None = None
    chosen = None
    for each in found:
        if each.target.key != target.key or not _is_near(each.workload, workload):
            continue
        speedup = each.speedup_at(workload.rows)
        rank = (speedup, -abs(math.log(each.workload.rows / workload.rows)))
        if speedup >= 1.0 and (best is None or rank > best):
            best, chosen = rank, each
    return chosen


def alike(found: Iterable[Neighbour], workload: Workload, target: Target) -> Neighbour | None:
    """A kernel for this very workload that won on another GPU of the same architecture, the fastest there.

    CPUs of one instruction set differ in what else they have, and a kernel may use all that its own had.
    """
    if target.backend != "cuda":
        return None
    fits = [
        each
        for each in found
        if (each.target.backend, each.target.arch) == (target.backend, target.arch)
        and each.workload == workload
    ]
    return max(fits, key=lambda each: each.speedup, default=None)


def _is_near(stored: Workload, wanted: Workload) -> bool:
    """Whether they differ in the number of rows alone, or in how the rows are laid out in dims."""
    is_same = replace(stored, shape=wanted.shape) == wanted
    return is_same and _row(stored) == _row(wanted)


def _row(workload: Workload) -> tuple[object, ...]:
    """All that a kernel knows of a row and of those that belong to it."""
    sample = workload.shape[1:] if workload.together > 1 and workload.stride == 1 else ()
    return workload.cols, workload.stride, workload.segment, workload.together, sample


def difference(
    wanted: tuple[Workload, Target], stored: Iterable[tuple[Workload, Target]]
) -> list[tuple[str, str, str]]:
    """(field, wanted, stored) of each field in which the closest of `stored` differs; empty where none is.

    The closest differs in the fewest fields, and then least in its size.
    """
    workload = wanted[0]

    def distance(pair: tuple[Workload, Target]) -> tuple[float, float]:
        other = pair[0]
        sizes = ((other.cols, workload.cols), (other.rows, workload.rows), (other.inner, workload.inner))
        return len(_differing(wanted, pair)), sum(abs(math.log(max(a, 1) / max(b, 1))) for a, b in sizes)

    closest = min(stored, key=distance, default=None)
    return [] if closest is None else _differing(wanted, closest)


def _differing(
    wanted: tuple[Workload, Target], stored: tuple[Workload, Target]
) -> list[tuple[str, str, str]]:
    ours, theirs = _fields(*wanted), _fields(*stored)
    names = [*ours, *(name for name in theirs if name not in ours)]
    pairs = [(name, ours.get(name, "absent"), theirs.get(name, "absent")) for name in names]
    return [(name, one, other) for name, one, other in pairs if one != other]


def _fields(workload: Workload, target: Target) -> dict[str, str]:
    fields = asdict(workload)
    options = {f"option {name}": value for name, value in fields.pop("options")}
    fields |= {"shape": workload.shape_text, "program": workload.program[:12]}
    fields |= {"backend": target.backend, "arch": target.arch, "device": target.device}
    return {name: str(value) for name, value in {**fields, **options}.items() if name != "inner"}

"""Where workloads stand under their device's roof: the work and bytes of each, beside its times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ksearch import operators
from ksearch.errors import KsearchError
from ksearch.operators.cost import Cost, cost_of
from ksearch.types import Winner, Workload


@dataclass(frozen=True, slots=True)
class Place:
    """One workload on one device."""

    name: str
    device: str
    cost: Cost
    time_us: float
    ceiling_us: float

    @property
    def intensity(self) -> float:
        """Operations for each byte that must move."""
        return self.cost.operations / self.cost.bytes

    def rate(self, time_us: float) -> float:
        """Operations in a nanosecond, which is 1e9 of them in a second, at that time."""
        return self.cost.operations / time_us / 1e3

    @property
    def bandwidth(self) -> float:
        """GB/s of the ceiling."""
        return self.cost.bytes / self.ceiling_us / 1e3


def cost(workload: Workload) -> Cost | None:
    """None where the op is not known here, or is another function now; its program may be empty, too."""
    try:
        program = operators.get(workload.op).program(**dict(workload.options))
    except KsearchError:
        return None
    found = cost_of(program, workload) if program.digest == workload.program else None
    return found if found and found.bytes and found.operations else None


def place(winner: Winner) -> Place | None:
    known = cost(winner.workload)
    if known is None:
        return None
    return Place(str(winner.workload), winner.target.device, known, winner.time_us, winner.ceiling_us)


def places(winners: Iterable[Winner]) -> tuple[Place, ...]:
    """Of the workloads whose cost is known."""
    return tuple(found for found in map(place, winners) if found is not None)

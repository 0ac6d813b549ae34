"""What the tuner, the worker and the session inside it tell each other; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ksearch.certificate import Conditions, Packing
from ksearch.types import Candidate, Outcome, Status, Target, Workload


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is for: one workload on one device."""

    op: str
    """Location text, as `ksearch.operators.resolve` takes it."""
    workload: Workload
    target: Target
    seed: int = 0
    memory_limit_bytes: int | None = None
    """Of device memory (on a CPU, of main memory) for everything the session holds."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What a started worker knows before the first candidate."""

    baseline_us: float
    """PyTorch's own function."""
    ceiling_us: float
    """A copy of the bytes that any kernel must move; of a linear PyTorch's product, if that takes longer."""
    environment: dict[str, str]
    memory_bytes: int
    """Held by the session at its highest so far."""


@dataclass(frozen=True, slots=True)
class Timing:
    time_us: float
    """Median."""
    spread_us: float
    """Half the distance between the quartiles."""
    repeats: int


@dataclass(frozen=True, slots=True)
class RegimeError:
    """Largest error of one regime, relative to the largest value of its row: the kernel's, PyTorch's.

    Of several outputs, that of the one where the kernel's is largest.
    """

    candidate: float
    baseline: float


DAMAGED = "damaged memory that candidates are judged by"
"""Said of a candidate that seems wrong in a process where what is right was changed: by it, or by another."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the session found out about one candidate."""

    status: Status
    message: str = ""
    error: float | None = None
    """Largest error, of all outputs, as a multiple of what is allowed."""
    errors: dict[str, RegimeError] = field(default_factory=dict)
    """By regime."""
    timing: Timing | None = None
    check_s: float = 0.0
    healthy: bool = True
    """False after a fault that leaves nothing in the process to be trusted."""


@dataclass(frozen=True, slots=True)
class Laps:
    """Samples in microseconds; sample i of each was taken in round i."""

    candidates_us: list[list[float]]
    baseline_us: list[float]
    ceiling_us: list[float]
    environment: dict[str, str]
    """Versions and device."""
    copy_us: list[float] = field(default_factory=list)
    """The copy alone, where the ceiling is something else; no right kernel is much faster."""
    conditions: tuple[Conditions, ...] = ()
    """Before the first round and right after the last: clocks and heat under load."""
    packings: list[Packing] = field(default_factory=list)
    """Of a prepacked workload, for each candidate."""


@dataclass(frozen=True, slots=True)
class Nearby:
    """A winner on another number of rows than it was tuned for."""

    rows: int
    speedup: float
    """Over PyTorch there; 0.0 where the kernel is not right, or does not run."""


@dataclass(frozen=True, slots=True)
class FinalEntry:
    """One finalist: checked on the whole workload and, if right, raced."""

    candidate: Candidate
    outcome: Outcome
    samples_us: list[float]
    """One for each round; empty unless PASSED."""
    errors: dict[str, RegimeError]
    """By regime, on the whole workload."""
    is_checked: bool = True
    """On the whole workload; else what screening found is all that is known of its results."""
    packing: Packing | None = None
    """Of a prepacked workload."""

    @property
    def told_errors(self) -> dict[str, dict[str, float]]:
        """`errors` as a certificate tells them."""
        return {
            regime: {"kernel": error.candidate, "pytorch": error.baseline}
            for regime, error in self.errors.items()
        }


@dataclass(frozen=True, slots=True)
class Finals:
    """The finalists in the order given, and what they ran against; samples pair up by round."""

    entries: list[FinalEntry]
    baseline_us: list[float]
    ceiling_us: list[float]
    environment: dict[str, str]
    copy_us: list[float] = field(default_factory=list)
    """As of Laps, as are the conditions."""
    conditions: tuple[Conditions, ...] = ()

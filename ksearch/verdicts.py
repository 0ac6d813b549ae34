"""What verifying a winner may find, and what that makes of its certificate."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from ksearch.certificate import Conditions
from ksearch.types import Winner


class Kind(enum.StrEnum):
    """What a finding is about."""

    DIGEST = "digest"
    WRONG = "wrong"
    SUSPICIOUS = "suspicious"
    PYTORCH = "slower than PyTorch"
    CERTIFIED = "slower than certified"
    REGRET = "regret"
    LEFT = "left"
    DEVICE = "device"
    VERSIONS = "versions"
    TEMPLATES = "templates"
    UNSURE = "unsure"
    CONDITIONS = "conditions"


class State(enum.StrEnum):
    """What became of a certificate."""

    HOLDS = "holds"
    BROKEN = "broken"
    """A digest or a result is wrong: the kernel must not be used."""
    SLOWER = "slower"
    """Right, and not as fast as stated; or faster than can be believed."""
    LEFT = "left"
    """It could not be verified here."""


_STATE_OF = {
    Kind.DIGEST: State.BROKEN,
    Kind.WRONG: State.BROKEN,
    Kind.SUSPICIOUS: State.SLOWER,
    Kind.PYTORCH: State.SLOWER,
    Kind.CERTIFIED: State.SLOWER,
    Kind.REGRET: State.SLOWER,
    Kind.LEFT: State.LEFT,
}
"""Of those that are more than a note."""
_WORST_FIRST = (State.BROKEN, State.LEFT, State.SLOWER)


@dataclass(frozen=True, slots=True)
class Finding:
    kind: Kind
    message: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured now; times in microseconds."""

    time_us: float
    """Of what runs: the kernel, or PyTorch where PyTorch won."""
    baseline_us: float
    ceiling_us: float
    speedup_ci: tuple[float, float] | None
    """None where PyTorch won."""
    error: float | None
    errors: dict[str, dict[str, float]]
    environment: dict[str, str]
    conditions: tuple[Conditions, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """One winner, and what was found."""

    winner: Winner
    findings: tuple[Finding, ...] = ()
    measured: Measured | None = None
    """None where it was not raced."""

    @property
    def state(self) -> State:
        states = {_STATE_OF.get(finding.kind) for finding in self.findings}
        return next((state for state in _WORST_FIRST if state in states), State.HOLDS)


def exit_status(verified: Sequence[Verified]) -> int:
    """0: all that was verified holds; 3: something is broken; 4: something is slower; 5: all was left."""
    states = {each.state for each in verified}
    if State.BROKEN in states:
        return 3
    if State.SLOWER in states:
        return 4
    return 0 if State.HOLDS in states else 5

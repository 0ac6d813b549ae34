"""What the store gives back that is not already one of `ksearch.types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ksearch.types import ConfigValue, Outcome, Status, canonical_json, digest


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One recorded candidate."""

    study: str
    number: int
    """Of the trial in its study."""
    config: dict[str, ConfigValue]
    outcome: Outcome
    artifact_key: str | None
    """None where nothing was compiled."""
    artifact_digest: str | None
    """SHA-256 of the binary: equal for configs that gave equal machine code."""
    registers: int
    spill_bytes: int
    compile_s: float
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """A winner's binary with the exact source and the compiler's words."""

    source: str
    binary: bytes
    log: str

    def __post_init__(self) -> None:
        if not (isinstance(self.source, str) and isinstance(self.log, str) and type(self.binary) is bytes):
            raise ValueError("an artifact is not text, log and binary")

    def of(self, name: str | None) -> StoredArtifact:
        """Itself. Raises ValueError where the binary is not the one of that digest."""
        if digest(self.binary) != name:
            raise ValueError(f"the SHA-256 of the binary {name} differs")
        return self


@dataclass(frozen=True, slots=True)
class Kill:
    """What became of one planted fault."""

    fault: str
    verdict: str
    """What the check said, a Status: `passed` where it let the fault pass; empty where it does not apply."""
    message: str
    """The check's words, or why it does not apply."""


@dataclass(frozen=True, slots=True)
class KillTable:
    """What the check made of every planted fault of one op, on workloads of one form."""

    op: str
    target_key: str
    facts: Mapping[str, Any]
    """All that decides the verdicts: the form, the template, the check itself, versions."""
    kills: tuple[Kill, ...]

    @property
    def key(self) -> str:
        """Identity in the database."""
        return digest(canonical_json([self.op, self.target_key, self.facts]))

    @property
    def applied(self) -> tuple[Kill, ...]:
        return tuple(kill for kill in self.kills if kill.verdict)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Faults that the check let pass."""
        return tuple(kill.fault for kill in self.kills if kill.verdict == Status.PASSED)

    @property
    def killed(self) -> int:
        return len(self.applied) - len(self.survivors)

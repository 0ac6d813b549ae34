"""What the store gives back that is not already one of `ksearch.types`."""

from __future__ import annotations

from dataclasses import dataclass

from ksearch.types import ConfigValue, Outcome


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

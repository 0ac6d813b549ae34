"""What a test found out about one fault, for the page of results: it goes into the report of pytest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ksearch.types import Outcome

Told: TypeAlias = Callable[[str, object], None]
"""Takes the fault and what became of it."""


def line(what: object) -> str:
    """`crashed: SIGSEGV`, or the error as a user sees it."""
    if isinstance(what, Outcome):
        return f"{what.status}: {what.message}" if what.message else str(what.status)
    return " ".join(str(what).split())

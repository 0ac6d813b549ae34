"""What a study is: workloads that are tuned in one run; and where the ones that ship with ksearch lie."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from ksearch.errors import UsageError
from ksearch.types import Option


@dataclass(frozen=True, slots=True)
class Entry:
    """One workload to tune."""

    number: int
    """Of its `[[workload]]` in the file, from 1; several entries share it where lists multiply out."""
    op: str
    """As `operators.resolve` takes it; the file of an op of one's own is absolute."""
    shape: tuple[int, ...]
    """As `Op.workload` takes it."""
    dtype: str = "float32"
    options: tuple[tuple[str, Option], ...] = ()
    """Those that the file states."""
    needs: str = ""
    """What ksearch lacks to tune it; empty where it can."""
    weight: float = 1.0
    """Its share of the study's seconds, in relation to the others'."""
    policy: str = "strict"
    prepacked: bool = False
    """Of a linear: its weight is a constant, packed once."""
    calls: int = 0
    """How often the program called it that was captured; 0 where nobody counted."""

    @property
    def name(self) -> str:
        return self.op.rpartition(":")[2]

    def __str__(self) -> str:
        options = "".join(f" {name}={value}" for name, value in self.options)
        policy = "" if self.policy == "strict" else f" {self.policy}"
        prepacked = " prepacked" if self.prepacked else ""
        return f"{self.name} {'x'.join(map(str, self.shape))} {self.dtype}{policy}{prepacked}{options}"


@dataclass(frozen=True, slots=True)
class StudyFile:
    """What a study asks for."""

    name: str
    path: Path
    entries: tuple[Entry, ...]
    """In the order of the file."""
    budget_s: float | None = None
    """For all of them together."""
    trials: int | None = None
    """For each."""
    device: str | None = None


@functools.cache
def shipped_folder() -> Path:
    """The studies that ship with ksearch: package data of a wheel, or the checkout's folder."""
    package = Path(__file__).parent
    installed = package / "_studies"
    return installed if installed.is_dir() else package.parent / "studies"


def find(text: str) -> Path:
    """The file that `text` names: a path, or the bare name of a study that ships with ksearch.

    Raises UsageError with the names that there are.
    """
    shipped = {path.stem: path for path in sorted(shipped_folder().glob("*.toml"))}
    if text in shipped:
        return shipped[text]
    path = Path(text).expanduser()
    if path.is_file():
        return path.resolve()
    raise UsageError(f"no study {text!r}: name a TOML file, or one that ships: {', '.join(shipped)}")

"""What a query gave, with its sums."""

from __future__ import annotations

import math
import operator
from collections.abc import Sized
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ksearch.web.entries import Entry

ROWS = 50
"""On a page."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a query gave, with the sums that `pages.views.Overview` has."""

    rows: list[Entry]
    """All of them, in order."""
    kernels: Sized
    by_pytorch: int
    without: int
    speedup: float | None
    percent_of_ceiling: float | None
    devices: list[str]

    @property
    def pages(self) -> int:
        return max(1, math.ceil(len(self.rows) / ROWS))

    def page(self, number: int) -> list[Entry]:
        return self.rows[(number - 1) * ROWS : number * ROWS]


@dataclass(slots=True)
class Sums:
    """Over all entries, counted as they change: to sum 100,000 up takes 80 ms."""

    won: int = 0
    numbers: int = 0
    """The sum of the winners' numbers, as `Listing.check` has it."""
    kernels: int = 0
    logarithms: float = 0.0
    """Of the speed-ups."""

    def count(self, entry: Entry, times: int) -> None:
        """Once, or minus once."""
        if entry.number:
            self.won += times
            self.numbers += times * entry.number
            self.kernels += times * (entry.result == "kernel")
            self.logarithms += times * math.log(entry.speedup)

    def found(self, entries: list[Entry], by_ceiling: list[Entry], devices: list[str]) -> Found:
        """`by_ceiling` are all of them with those that have a winner first, in ascending order."""
        won = by_ceiling[: self.won]
        middle = [won[at].percent_of_ceiling for at in ((self.won - 1) // 2, self.won // 2) if won]
        return Found(
            rows=entries,
            kernels=range(self.kernels),
            by_pytorch=self.won - self.kernels,
            without=len(entries) - self.won,
            speedup=math.exp(self.logarithms / self.won) if self.won else None,
            percent_of_ceiling=sum(middle) / 2 if self.won else None,
            devices=devices,
        )


def summed(entries: list[Entry]) -> Found:
    won = [entry for entry in entries if entry.number]
    kernels = [entry for entry in won if entry.result == "kernel"]
    return Found(
        rows=entries,
        kernels=kernels,
        by_pytorch=len(won) - len(kernels),
        without=len(entries) - len(won),
        speedup=float(np.exp(np.log(_column(won, "speedup")).mean())) if won else None,
        percent_of_ceiling=float(np.median(_column(won, "percent_of_ceiling"))) if won else None,
        devices=sorted({entry.device for entry in entries}),
    )


def _column(entries: list[Entry], name: str) -> npt.NDArray[np.float64]:
    return np.fromiter(map(operator.attrgetter(name), entries), np.float64, len(entries))

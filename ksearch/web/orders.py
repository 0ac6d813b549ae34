"""Entries in the orders that were asked for, kept in order as entries come and change.

To sort 100,000 of them takes 0.1 s, to put one in its place 1 ms.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Callable, Iterable
from typing import Any

from ksearch.web.entries import Entry

_OF_ALL = ("op", "device", "elements")
"""Columns that entries without a winner have, too; by any other they come last."""


class Orders:
    """Of a set of entries."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._ascending = {"op": sorted(entries, key=_name)}

    def add(self, entry: Entry) -> None:
        for column, ordered in self._ascending.items():
            if column in _OF_ALL or entry.number:
                bisect.insort(ordered, entry, key=_key(column))

    def change(self, entry: Entry, later: Entry) -> None:
        """Give it the figures of `later`."""
        figures = [column for column in self._ascending if column not in _OF_ALL]
        if entry.number:
            for column in figures:
                self._ascending[column].remove(entry)
        for name in Entry.FIGURES:
            setattr(entry, name, getattr(later, name))
        for column in figures:
            bisect.insort(self._ascending[column], entry, key=_key(column))

    def get(self, sort: str) -> list[Entry]:
        """All of them by a column, after a minus with the largest first."""
        column = sort.removeprefix("-")
        by_name = self._ascending["op"]
        if column not in self._ascending:
            members = by_name if column in _OF_ALL else [entry for entry in by_name if entry.number]
            self._ascending[column] = sorted(members, key=_key(column))
        ordered = self._ascending[column]
        if sort.startswith("-"):
            ordered = ordered[::-1]
        return ordered if column in _OF_ALL else ordered + [entry for entry in by_name if not entry.number]


def _name(entry: Entry) -> tuple[str, str, tuple[int, ...], str]:
    return entry.op, entry.dtype, entry.dims, entry.device


def _key(column: str) -> Callable[[Entry], Any]:
    return _name if column == "op" else operator.attrgetter(column)

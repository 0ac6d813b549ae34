"""What a list is asked for, as it stands in the address: words, filters, order, page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from ksearch.errors import UsageError

FACETS = ("op", "dtype", "device", "result")
"""What is chosen from a list of values."""

COLUMNS = ("op", "elements", "device", "time_us", "baseline_us", "speedup", "percent_of_ceiling", "created")
"""What can be sorted by."""

LARGEST_FIRST = frozenset(("speedup", "created"))
"""Columns that begin with their largest value when they are first sorted by."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries, in which order; empty is any."""

    q: str = ""
    op: str = ""
    dtype: str = ""
    device: str = ""
    result: str = ""
    sort: str = "op"
    """A column, after a minus where the largest comes first."""
    page: int = 1

    @classmethod
    def read(cls, asked: Mapping[str, str]) -> Query:
        """Raises UsageError for a column or page that there is not."""
        known = {name: asked[name].strip() for name in ("q", *FACETS) if name in asked}
        sort, page = asked.get("sort") or "op", asked.get("page") or "1"
        if sort.removeprefix("-") not in COLUMNS:
            raise UsageError(f"cannot sort by {sort!r}; columns are {', '.join(COLUMNS)}")
        if not (page.isascii() and page.isdigit() and 1 <= int(page[:9]) == int(page)):
            raise UsageError(f"there is no page {page!r}; pages are counted from 1")
        return cls(**known, sort=sort, page=int(page))

    @property
    def column(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def is_descending(self) -> bool:
        return self.sort.startswith("-")

    @property
    def is_narrowed(self) -> bool:
        return any((self.q, *(getattr(self, name) for name in FACETS)))

    def at(self, page: int) -> Query:
        return replace(self, page=page)

    def sorted_by(self, column: str) -> Query:
        """As a click on its head has it: the other way round, where it is sorted by already."""
        if column == self.column:
            sort = column if self.is_descending else f"-{column}"
        else:
            sort = f"-{column}" if column in LARGEST_FIRST else column
        return replace(self, sort=sort, page=1)

    @property
    def items(self) -> list[tuple[str, str]]:
        """What differs from the default, as it stands in an address."""
        usual = asdict(Query())
        return [(name, str(value)) for name, value in asdict(self).items() if value != usual[name]]

"""A table for the terminal that fits: where it is too wide, its less important columns are told below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a Grid."""

    name: str
    right: bool = False
    rank: int = 0
    """The larger, the sooner it makes way; 0: never."""
    folds: int = 0
    """How narrow it may become, when its cells go on in further lines; 0: they do not."""


class Grid:
    """Rows of texts under the columns' names; a pipe, which has no width, gets all of it."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._rows: list[tuple[Text, ...]] = []

    def add(self, *cells: str | Text, style: str = "") -> None:
        """One row; `style` is that of all its cells."""
        made = tuple(cell.copy() if isinstance(cell, Text) else Text(cell) for cell in cells)
        for cell in made:
            cell.stylize(style)
        self._rows.append(made)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._fitting(options.max_width)
        headers = [self._columns[n].name for n in shown]
        fits = self._width(shown, headers) <= options.max_width
        if not fits:  # `% of ceiling` takes half the place in two lines
            headers = [_in_two(name) for name in headers]
            fits = self._width(shown, headers) <= options.max_width
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        for number, header in zip(shown, headers, strict=True):
            column = self._columns[number]
            # What is long is cut by folding, never by dots: a device that ends in dots cannot be copied.
            table.add_column(
                Text(header),
                justify="right" if column.right else "left",
                overflow="fold",
                no_wrap=fits and not column.folds,
            )
        for row in self._rows:
            table.add_row(*(row[n] for n in shown))
        yield table
        if left_out := [n for n in range(len(self._columns)) if n not in shown]:
            yield Text(self._told(left_out), style="dim")

    def _fitting(self, width: int) -> list[int]:
        """The columns to show, in order. What is the same in every row makes way first: it is told once."""
        shown = list(range(len(self._columns)))
        headers = [_in_two(column.name) for column in self._columns]
        going = sorted(
            (n for n in shown if self._columns[n].rank),
            key=lambda n: (self._same(n) is None, -self._columns[n].rank),
        )
        for number in going:
            if self._width(shown, [headers[n] for n in shown]) <= width:
                break
            shown.remove(number)
        return shown

    def _width(self, shown: Sequence[int], headers: Sequence[str]) -> int:
        total = _GAP * (len(shown) - 1)
        for number, header in zip(shown, headers, strict=True):
            cells = max((cell_len(row[number].plain) for row in self._rows), default=0)
            if folds := self._columns[number].folds:
                cells = min(cells, folds)
            total += max(cells, *(cell_len(line) for line in header.split("\n")))
        return total

    def _same(self, number: int) -> str | None:
        """What stands in every cell of the column; None where they differ."""
        cells = {row[number].plain for row in self._rows}
        return cells.pop() if len(cells) == 1 else None

    def _told(self, left_out: Sequence[int]) -> str:
        columns = [(self._columns[n].name, self._same(n)) for n in left_out]
        same = [f"{name}: {value}" for name, value in columns if value is not None]
        differ = ", ".join(name for name, value in columns if value is None)
        more = [f"a wider terminal, --json or --csv also have: {differ}"] if differ else []
        return "; ".join([*same, *more])


def _in_two(name: str) -> str:
    """Broken where both lines become shortest."""
    words = name.split(" ")
    ways = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    return "\n".join(min(ways, key=lambda way: max(map(len, way)), default=(name,)))

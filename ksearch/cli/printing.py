"""How a command writes: stdout holds the result and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_MOST = 50
"""Lines of a table, where nobody says how many."""


def console(*, stderr: bool = False) -> Console:
    # rich takes 60 ms to import, which `--help` need not pay
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_rich(renderable: RenderableType) -> None:
    """Colour and folding for a terminal; neither for a pipe or a file, which may be searched by line."""
    out = console()
    if out.is_terminal:
        out.print(renderable)
        return
    out.width = 10_000
    with out.capture() as captured:
        out.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_json(value: Any) -> None:
    from ksearch.report.rows import to_json

    print(to_json(value))


def print_rows(rows: Iterable[Mapping[str, Any]], form: str) -> None:
    """As `json` or `csv`, each as soon as it is there."""
    from ksearch.report import lines

    for piece in lines.json_lines(rows) if form == "json" else lines.csv_lines(rows):
        sys.stdout.write(piece)


def most_lines(limit: int | None, form: str | None) -> int | None:
    """How many rows are listed; None: all. A program gets all that it does not refuse, a person fifty."""
    if limit is None:
        return None if form else _MOST
    return limit or None

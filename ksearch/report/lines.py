"""Rows of results as text, one a line, while they come: JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ksearch.report.rows import finite


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A JSON list, each row on a line of its own."""
    before = "["
    for row in rows:
        yield f"{before}\n  {json.dumps(finite(row), default=str, allow_nan=False)}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def csv_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line of names, those of the first row, and then one for each row; nothing where there is no row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow([_cell(name, value) for name, value in row.items()])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _cell(name: str, value: Any) -> Any:
    """A shape as it is written elsewhere, what has parts as JSON, and nothing where there is no value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if name == "shape":
        return "x".join(map(str, value))
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(finite(value), default=str)
    return value

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from ksearch.report import lines

ROWS: list[dict[str, Any]] = [
    {"op": "softmax", "shape": [64, 256], "us": 1.5, "ci": [1.0, 2.0], "config": {"a": True}, "ok": True},
    {"op": 'an "odd", name', "shape": [], "us": math.inf, "ci": None, "config": None, "ok": False},
]


def test_json_is_a_list_with_a_row_on_each_line() -> None:
    text = "".join(lines.json_lines(ROWS))
    assert json.loads(text) == [ROWS[0], {**ROWS[1], "us": None}]
    assert len(text.splitlines()) == 4
    assert "".join(lines.json_lines([])) == "[]\n"


def test_csv_has_plain_cells() -> None:
    text = "".join(lines.csv_lines(ROWS))
    assert list(csv.reader(io.StringIO(text))) == [
        ["op", "shape", "us", "ci", "config", "ok"],
        ["softmax", "64x256", "1.5", "[1.0, 2.0]", '{"a": true}', "true"],
        ['an "odd", name', "", "", "", "", "false"],
    ]
    assert "".join(lines.csv_lines([])) == ""


def test_a_row_is_written_before_the_next_is_made() -> None:
    made = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in ROWS:
            made.append(row)
            yield row

    for write in (lines.json_lines, lines.csv_lines):
        made.clear()
        next(write(rows()))
        assert made == ROWS[:1]

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from ksearch.report.grid import Column, Grid


def printed(grid: Grid, width: int) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


@pytest.fixture
def grid() -> Grid:
    grid = Grid(
        Column("op"),
        Column("dtype", rank=1),
        Column("% of ceiling", right=True, rank=2),
        Column("device", rank=3),
        Column("config", rank=4, folds=8),
    )
    grid.add("softmax", "float32", "86 %", "a [GPU]", "block=256 vec=4")
    grid.add("gelu", "float32", "100 %", "a CPU", "simd=64 unroll=4", style="dim")
    return grid


def test_where_there_is_room_everything_is_one_line(grid: Grid) -> None:
    assert printed(grid, 200) == [
        "op       dtype    % of ceiling  device   config",
        "softmax  float32          86 %  a [GPU]  block=256 vec=4",
        "gelu     float32         100 %  a CPU    simd=64 unroll=4",
    ]


def test_first_headers_are_broken_and_cells_fold_that_may(grid: Grid) -> None:
    lines = printed(grid, 46)
    assert [line.split() for line in lines[:2]] == [
        ["%", "of"],
        ["op", "dtype", "ceiling", "device", "config"],
    ]
    assert lines[2].endswith("block=256")
    assert lines[3].split() == ["vec=4"]


def test_what_is_the_same_everywhere_makes_way_first_and_is_told_once(grid: Grid) -> None:
    lines = printed(grid, 36)
    assert "float32" not in " ".join(lines[:-1])
    assert lines[-1] == "dtype: float32"


def test_then_less_important_columns_go_and_are_named(grid: Grid) -> None:
    lines = printed(grid, 26)
    told = lines.index("dtype: float32; a wider")
    assert " ".join(lines[told:]).endswith("--json or --csv also have: config")
    assert "a [GPU]" in lines[2]


def test_a_column_without_rank_stays_however_narrow_it_is() -> None:
    grid = Grid(Column("op"), Column("us", right=True))
    grid.add(Text("softmax_backward"), "1,240")
    lines = [line.split() for line in printed(grid, 12)[1:]]
    assert "".join(line[0] for line in lines) == "softmax_backward"
    assert lines[0][1] == "1,240"


def test_no_rows_are_a_header() -> None:
    assert printed(Grid(Column("op"), Column("us")), 80) == ["op  us"]

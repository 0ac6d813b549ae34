from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from ksearch.report import progress
from ksearch.tuner import Progress

AT_WORK = Progress(
    trials_done=12,
    trials_total=200,
    failures={"wrong": 2, "timeout": 1},
    best_us=73.1,
    baseline_us=140.0,
    ceiling_us=70.0,
    seconds_left=41.0,
    phase="search",
)


def test_the_line_says_how_far_how_good_and_how_long_still() -> None:
    assert progress.line(AT_WORK) == (
        "search  12/200  best 73.10 us  1.92x PyTorch  96 % of ceiling  "
        "failed: 2 wrong, 1 timeout  41.0 s left"
    )


def test_what_is_not_known_yet_is_left_out() -> None:
    start = Progress(0, None, {}, None, None, None, None, "start")
    assert progress.line(start) == "start  0"
    assert "left" not in progress.line(replace(AT_WORK, seconds_left=0.0))
    assert "PyTorch" not in progress.line(replace(AT_WORK, baseline_us=None))


def test_no_line_is_drawn_where_nobody_looks() -> None:
    pipe = io.StringIO()
    with progress.shown(Console(file=pipe), enabled=True) as callback:
        assert callback is None
    with progress.shown(Console(file=pipe, force_terminal=True), enabled=False) as callback:
        assert callback is None
    assert pipe.getvalue() == ""


def test_on_a_terminal_the_line_moves_and_is_gone_at_the_end() -> None:
    terminal = io.StringIO()
    with progress.shown(Console(file=terminal, force_terminal=True, width=150), enabled=True) as callback:
        assert callback is not None
        callback(AT_WORK)
    drawn = terminal.getvalue()
    assert "search  12/200" in drawn
    assert drawn.rstrip("\n").endswith("\x1b[2K")  # the last thing written erases the line

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from ksearch.report import rows, study, study_progress, tables
from ksearch.study import Entry
from ksearch.study_run import Result, State, StudyProgress, StudyReport
from ksearch.tuner import Progress, Report
from ksearch.types import Winner

ENTRY = Entry(1, "softmax", (2048, 4096), "float32", (("scale", 0.5),))


@pytest.fixture
def report(winner: Winner, baseline: Winner) -> StudyReport:
    """One workload of each kind."""
    tuned = Report(winner, 50, {"wrong": 1}, 48.31, "/d/k.db", {"wrong": "row 3 is zero"})
    results = (
        Result(ENTRY, State.TUNED, "", winner, tuned, 48.31),
        Result(ENTRY, State.PYTORCH, "", baseline, replace(tuned, winner=baseline), 12.0),
        Result(ENTRY, State.HAD, "", replace(winner, certificate={"trials": 20})),
        Result(
            replace(ENTRY, op="/home/me/my_ops.py:swish"), State.FAILED, "no worker [at all]", elapsed_s=3.0
        ),
        Result(replace(ENTRY, op="linear"), State.NEEDS, "needs linear"),
        Result(ENTRY, State.LEFT, "interrupted"),
        Result(ENTRY, State.LEFT, "interrupted"),
    )
    return StudyReport("mine", "/d/k.db", 725.0, results, interrupted=True)


def test_a_finished_workload_is_one_line(report: StudyReport) -> None:
    label = "softmax 2048x4096 float32 scale=0.5"
    assert [study.line(result) for result in report.results[:6]] == [
        f"{label}: 1,240 us, 1.52x PyTorch, 86 % of the ceiling, 50 candidates, 48.3 s",
        f"{label}: 1,880 us, 1.00x PyTorch, 57 % of the ceiling, 50 candidates, 12.0 s (PyTorch itself)",
        f"{label}: 1,240 us, 1.52x PyTorch, 86 % of the ceiling, 20 candidates (had it)",
        "swish 2048x4096 float32 scale=0.5: failed: no worker [at all]",
        "linear 2048x4096 float32 scale=0.5: needs linear",
        f"{label}: not reached: interrupted",
    ]


def test_the_table_has_a_line_for_every_workload_and_says_what_became_of_it(report: StudyReport) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(tables.study(report))
    header, *lines = [line.rstrip() for line in captured.get().splitlines()]
    assert header.split("  ")[0] == "workload"
    endings = [
        "tuned",
        "PyTorch won",
        "skipped: had it",
        "failed",
        "needs linear",
        "not reached",
        "not reached",
    ]
    assert len(lines) == len(endings)
    for line, ending in zip(lines, endings, strict=True):
        assert line.endswith(ending)
    assert lines[0].split()[4:-1] == ["1,240", "1.52x", "86", "%", "50", "48.3", "s"]
    assert lines[2].split()[8:10] == ["20", "-"]
    assert lines[4].split()[4:-2] == ["-"] * 5


def test_under_the_table_stand_the_reasons_and_the_sum(report: StudyReport) -> None:
    assert study.troubles(report) == [
        "swish 2048x4096 float32 scale=0.5: failed: no worker [at all]",
        "not reached: interrupted",
    ]
    counts, means, elapsed, stored = study.footer(report).split("; ")
    assert counts == (
        "study mine: 2 not reached, 1 failed, 1 had, 1 not possible yet, 1 tuned, 1 where PyTorch won"
    )
    speedup, ceiling = (1880 / 1240.25) ** (2 / 3), (85.95 * 85.95 * 56.70) ** (1 / 3)
    assert means == f"geometric mean {speedup:.2f}x PyTorch, {ceiling:.0f} % of the ceiling"
    assert (elapsed, stored) == ("12:05", "stored in /d/k.db")
    nothing = replace(report, results=report.results[3:])
    assert "mean" not in study.footer(nothing)


def test_a_mean_leaves_out_what_has_no_logarithm() -> None:
    assert study.geometric_mean([2.0, 8.0, 0.0, math.inf, math.nan]) == pytest.approx(4.0)
    assert math.isnan(study.geometric_mean([0.0]))


def test_as_json_every_workload_has_a_row_with_its_state(report: StudyReport) -> None:
    content = json.loads(rows.to_json(rows.study_row(report)))
    assert (content["study"], content["db"], content["elapsed_s"]) == ("mine", "/d/k.db", 725.0)
    assert (content["complete"], content["interrupted"]) == (False, True)
    tuned, lost, had, failed, needs, *_ = content["workloads"]
    assert tuned["time_us"] == 1240.25
    assert (tuned["trials"], tuned["failures"], tuned["elapsed_s"]) == (50, {"wrong": 1}, 48.31)
    assert [row["state"] for row in content["workloads"]] == [str(result.state) for result in report.results]
    assert (lost["status"], had["status"], had["trials"]) == ("baseline", "winner", 20)
    assert (failed["op"], failed["shape"], failed["reason"]) == ("swish", [2048, 4096], "no worker [at all]")
    assert (needs["options"], needs["trials"]) == ({"scale": 0.5}, 0)


# ---- while it runs ------------------------------------------------------------------------------------

STEP = Progress(12, 200, {}, 73.1, 140.0, 70.0, 41.0, "search")


def play(update: Callable[[StudyProgress], None], report: StudyReport) -> None:
    update(StudyProgress(0, 7, ENTRY, None, None, None))
    update(StudyProgress(0, 7, ENTRY, STEP, 90.0, None))
    update(StudyProgress(1, 7, None, None, 80.0, report.results[0]))


def test_where_nobody_looks_there_is_one_plain_line_for_each_finished_workload(report: StudyReport) -> None:
    pipe = io.StringIO()
    with study_progress.shown(Console(file=pipe, width=40), "mine", moving=True) as update:
        play(update, report)
    assert pipe.getvalue() == f"1/7  {study.line(report.results[0])}\n"
    still = io.StringIO()
    with study_progress.shown(Console(file=still, force_terminal=True), "mine", moving=False) as update:
        play(update, report)
    assert "\x1b[2K" not in still.getvalue()
    assert "search" not in still.getvalue()


def test_on_a_terminal_a_bar_and_a_line_move_below_what_is_finished(report: StudyReport) -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=160, color_system=None)
    with study_progress.shown(console, "mine", moving=True) as update:
        update(StudyProgress(0, 7, ENTRY, STEP, 90.0, None))
        shown = console.render_lines(study_progress._Display("mine"))
        assert "reading" in "".join(segment.text for segment in shown[0])
    moving = terminal.getvalue()
    assert "study mine" in moving
    assert "0/7" in moving
    assert "about 1:30 left" in moving
    assert "softmax 2048x4096 float32 scale=0.5  search  12/200  best 73.10 us  1.92x PyTorch" in moving

    with study_progress.shown(console, "mine", moving=True) as update:
        play(update, report)
    assert f"1/7  {study.line(report.results[0])}" in terminal.getvalue()
    assert terminal.getvalue().rstrip("\n").endswith("\x1b[2K")  # the last thing written erases the display

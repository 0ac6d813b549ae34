from __future__ import annotations

import math
from dataclasses import replace

from rich.console import Console, RenderableType

from ksearch import operators
from ksearch.report import rows, summary
from ksearch.tuner import Report
from ksearch.types import Winner


def printed(renderable: RenderableType, width: int = 200) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def report_of(winner: Winner) -> Report:
    first = {"compile_error": "rowwise.cpp.j2:31: expected ';' [x]", "wrong": "row 3 is zero"}
    phases_s = {"admit": 0.04, "compile": 12.0}
    return Report(winner, 50, {"compile_error": 2, "wrong": 1}, 48.31, "/d/k.db", first, phases_s)


def test_after_tuning_a_person_sees_what_to_act_on(winner: Winner) -> None:
    text = printed(summary.tuned(report_of(winner), "softmax", default_db="/d/k.db"))
    for expected in (
        "softmax 2048x4096 float32 scale=0.5 on Some CPU [2 threads]",
        "1.47x to 1.55x the speed of PyTorch, with 95 % confidence",
        "simd=64 unroll=4 store=stream online=True",
        "50 candidates, 3 failed: 2 compile_error, 1 wrong",
        "first compile_error: rowwise.cpp.j2:31: expected ';' [x]",
        "48.3 s: compile 12.0 s",
        "/d/k.db",
    ):
        assert expected in text, text
    row = next(line.split() for line in text.splitlines() if line.startswith("ksearch"))
    assert row == ["ksearch", "1,240", "1.52x", "86", "%"]


def test_the_lines_of_python_are_python_that_loads_this_workload(winner: Winner) -> None:
    lines = summary.snippet(winner, "my_ops.py:softmax", "/other.db", "/d/k.db")
    compile(lines, "snippet", "exec")
    assert (
        "ksearch.load('my_ops.py:softmax', shape=(2048, 4096), dtype=torch.float32, device='cpu', "
        "scale=0.5, db='/other.db')"
    ) in lines
    assert "db=" not in summary.snippet(winner, "softmax", "/d/k.db", "/d/k.db")
    norm = replace(winner, workload=operators.get("layernorm").workload((4, 8), bias="none"))
    assert summary.snippet(norm, "layernorm", "/d/k.db", "/d/k.db").endswith("\ny = layernorm(x, weight)")
    unknown = summary.snippet(norm, "/nowhere/my_ops.py:mine", "/d/k.db", "/d/k.db")
    assert unknown.endswith("\ny = layernorm(x)")
    unbounded = replace(winner, workload=replace(winner.workload, options=(("max", math.inf), ("min", -1.0))))
    assert "max=float('inf'), min=-1.0" in summary.snippet(unbounded, "clamp", "/d/k.db", "/d/k.db")


def test_a_machine_that_was_busy_is_told_of(winner: Winner) -> None:
    def said_under(load: float) -> str:
        known = {**winner.certificate, "conditions": [{"when": "after", "load_average": load}]}
        busy = replace(winner, certificate=known)
        return printed(summary.tuned(report_of(busy), "softmax", default_db="/d/k.db"))

    assert "a load of 6.0 on 2 threads while it was measured" in said_under(6.0)
    assert "while it was measured" not in said_under(2.0), "its own two threads"


def test_where_pytorch_won_it_is_said(baseline: Winner) -> None:
    text = printed(summary.tuned(report_of(baseline), "softmax", default_db="/d/k.db"))
    assert "PyTorch is what load() will run" in text
    assert not any(line.startswith("ksearch ") for line in text.splitlines())
    assert summary.one_line(baseline).endswith("(PyTorch itself)")


def test_an_alarm_is_not_kept_quiet(winner: Winner) -> None:
    odd = replace(winner, certificate={"alarm": "1.30 times as fast as the ceiling: check the machine"})
    text = printed(summary.tuned(report_of(odd), "softmax", default_db="/d/k.db"))
    assert "1.30 times as fast as the ceiling" in text


def test_a_shown_winner_has_its_evidence_but_not_its_samples(winner: Winner) -> None:
    row = rows.shown_row(winner, [], {"torch": "2.13.0"}, "/c/softmax.cpp", "/d/k.db")
    text = printed(summary.shown(winner, row, default_db="/d/k.db"))
    assert "medians of" not in text, "without PyTorch's samples there is nothing to pair them with"
    assert "digests         binary abababababab" in text
    assert "/c/softmax.cpp" in text
    assert "2026-11-20T12:00:00Z" in text
    assert "launch  threads=2 alignment=4  " in text
    assert "measured under  torch 2.13.0" in text

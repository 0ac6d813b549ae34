"""Two winners beside one another, line by line."""

from __future__ import annotations

from dataclasses import replace

from ksearch.launch import Launch
from ksearch.pages.comparison import Comparison, Difference, Line
from ksearch.pages.views import WorkloadView, workload_view
from ksearch.types import Winner
from tests.pages import results


def view(source: str | None, **changes: object) -> WorkloadView:
    winner = Winner(
        workload=results.SOFTMAX,
        target=results.CPU,
        config={"unroll": 2, "simd": 32},
        launch=Launch(threads=2),
        artifact="ab" * 32,
        time_us=10.0,
        baseline_us=20.0,
        ceiling_us=8.0,
        certificate={"samples_us": results.samples(10.0), "baseline_samples_us": results.samples(20.0)},
    )
    winner = replace(winner, **changes)
    return workload_view(winner.workload, winner.target, winner, [], href="/w/x", source=source)


def test_a_parameter_that_one_lacks_is_empty_there() -> None:
    both = Comparison(view("a"), view("a", config={"simd": 64, "keep": True}))
    assert both.config == (
        Difference("unroll", "2", ""),
        Difference("simd", "32", "64"),
        Difference("keep", "", "True"),
    )
    assert [each.is_same for each in Comparison(view("a"), view("a")).config] == [True, True]


def test_where_pytorch_won_there_is_no_config() -> None:
    both = Comparison(view("a"), view(None, config=None, launch=None, artifact=None))
    assert [each.right for each in both.config] == ["", ""]
    assert list(both.lines()) == []


def test_lines_that_differ_stand_among_their_neighbours() -> None:
    left = [f"line {number}" for number in range(1, 21)]
    right = [*left[:9], "another", *left[10:], "last"]
    both = Comparison(view("\n".join(left)), view("\n".join(right)))
    lines = list(both.lines())
    assert [line for line in lines if line.kind in ("left", "right")] == [
        Line("left", 10, None, "line 10"),
        Line("right", None, 10, "another"),
        Line("right", None, 21, "last"),
    ]
    assert [line.left for line in lines if line.kind == "same"] == [7, 8, 9, 11, 12, 13, 18, 19, 20]
    assert sum(line.kind == "gap" for line in lines) == 2


def test_equal_sources_have_no_lines() -> None:
    both = Comparison(view("a\nb"), view("a\nb"))
    assert both.has_equal_sources
    assert list(both.lines()) == []


def test_samples_far_apart_are_on_a_logarithmic_axis() -> None:
    near = Comparison(view("a"), view("a")).samples()
    assert near.variants[0].layout["xaxis"].get("type") != "log"
    slow = {"samples_us": results.samples(900.0)}
    apart = Comparison(view("a"), view("a", certificate=slow)).samples()
    assert apart.variants[0].layout["xaxis"]["type"] == "log"
    assert Comparison(view("a", certificate={}), view("a", certificate={})).samples().empty

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ksearch.pages import figures, roof
from ksearch.pages.contents import Contents
from ksearch.pages.plotting import Figure, literal, log_axis, ticks
from ksearch.pages.views import WorkloadView
from ksearch.search.mirror import Row
from ksearch.search.plots import Plots
from ksearch.types import Outcome, Status
from tests.pages import results

Views = dict[tuple[str, str], WorkloadView]


@pytest.fixture(scope="module")
def drawn(views: Views) -> dict[str, Figure]:
    """Of the softmax on the CPU: 24 candidates, the first five failed."""
    return figures.draw(views["softmax", "cpu"])


def trace(figure: Figure, variant: int, name: str) -> dict[str, Any]:
    return next(each for each in figure.variants[variant].data if each.get("name") == name)


def test_every_figure_is_drawn_and_is_plain_json(views: Views) -> None:
    for view in views.values():
        found = figures.draw(view)
        assert list(found) == [plan.name for plan in figures.PLANS]
        for figure in found.values():
            assert bool(figure.variants) != bool(figure.empty)
            json.dumps(figure.to_json(), allow_nan=False)


def test_the_best_so_far_falls_to_the_fastest(views: Views, drawn: dict[str, Figure]) -> None:
    times = [each.outcome.time_us for each in views["softmax", "cpu"].evaluations if each.outcome.time_us]
    for variant in (0, 1):
        best = trace(drawn["convergence"], variant, "best so far")["y"]
        assert best == sorted(best, reverse=True)
        assert best[-1] == min(times)
        assert len(best) == len(times)


def test_candidates_stand_at_their_own_numbers(drawn: dict[str, Figure]) -> None:
    assert trace(drawn["convergence"], 0, "candidates")["x"] == list(range(5, 24))
    assert trace(drawn["convergence"], 0, "failed")["x"] == list(range(5))


def test_a_pause_between_two_runs_is_left_out_of_the_seconds(views: Views) -> None:
    view = views["softmax", "cpu"]
    at = [f"2026-11-20T{hour:02}:00:{second:02}+00:00" for hour in (10, 20) for second in range(12)]
    timed = zip(view.evaluations, at, strict=True)
    resumed = replace(view, evaluations=tuple(replace(each, created=now) for each, now in timed))
    figure = figures.draw(resumed)["convergence"]
    assert trace(figure, 1, "candidates")["x"] == [float(s) for s in (*range(5, 12), *range(11, 23))]
    assert figure.note.startswith("Left out of the time: 1 pause")


def test_importances_come_from_optuna_and_sum_to_all(drawn: dict[str, Figure]) -> None:
    (bars,) = drawn["importances"].variants[0].data
    assert sum(bars["x"]) == pytest.approx(100.0)
    assert set(bars["y"]) == {"block", "unroll", "store", "vector"}


def test_a_slice_for_each_parameter_has_its_values_in_order(drawn: dict[str, Figure]) -> None:
    by_name = {variant.label: variant for variant in drawn["slices"].variants}
    assert set(by_name) == {"block", "unroll", "store", "vector"}
    axis = by_name["block"].layout["xaxis"]
    assert axis["ticktext"] == ["64", "<b>128</b>", "256"]  # the winner's in bold
    (points,) = by_name["store"].data
    on_temporal = [number for number, x in zip(points["customdata"], points["x"], strict=True) if x > 0.5]
    assert all(number % 2 for number in on_temporal)
    assert len(on_temporal) == 10


def test_parallel_lines_hold_every_candidate_the_fastest_last(drawn: dict[str, Figure]) -> None:
    lines = drawn["parallel"].variants[0].data
    assert [each["name"] for each in lines] == [
        "slowest 20 %", "slower 20 %", "slower 20 %", "slower 20 %", "fastest 20 %",
    ]  # fmt: skip
    assert sum(each["y"].count(None) for each in lines) == 19
    assert min(lines[-1]["y"][::6]) == 0.0  # the axis of the time: its lowest
    assert max(lines[0]["y"][::6]) == 1.0


def test_a_search_of_one_candidate_has_no_importances(views: Views) -> None:
    view = views["softmax", "cpu"]
    found = figures.draw(replace(view, evaluations=view.evaluations[5:6]))
    assert found["convergence"].variants
    assert all(found[name].empty for name in ("importances", "slices", "parallel"))


def test_what_cannot_be_drawn_says_why(views: Views) -> None:
    failed, unknown = figures.draw(views["rmsnorm", "cpu"]), figures.draw(views["my_op", "cpu"])
    assert failed["convergence"].empty.startswith("No candidate passed")
    assert failed["roofline"].empty.startswith("No final was run")
    assert unknown["convergence"].empty.startswith("The candidates of this search are not in the database")
    assert unknown["roofline"].empty.startswith("The op is not known here")


def test_the_final_shows_the_runner_up_or_says_that_it_was_not_kept(views: Views) -> None:
    names = [
        each["name"] for each in figures.draw(views["softmax", "cuda"])["distribution"].variants[0].data[::2]
    ]
    assert names == ["ksearch", "runner-up", "PyTorch", "triton"]
    assert "not kept" in figures.draw(views["softmax", "cpu"])["distribution"].note


def test_the_speed_up_by_round_holds_the_certified_interval(drawn: dict[str, Figure]) -> None:
    variant = drawn["distribution"].variants[1]
    band = next(each for each in variant.layout["shapes"] if each["type"] == "rect")
    assert (band["y0"], band["y1"]) == (1.9, 2.1)
    assert len(variant.data[0]["y"]) == 12


def test_the_roof_is_the_measured_copy_and_of_a_linear_the_product(found: Contents, views: Views) -> None:
    places = found.places()
    of_copy = figures.draw(views["softmax", "cpu"], places)["roofline"].variants[0]
    bandwidth = 2 * 256 * 1024 * 4 / 40.0 / 1e3  # read and written once in 40 us: GB/s
    assert of_copy.data[0]["name"] == f"ceiling: a copy, {bandwidth:,.4g} GB/s"
    low, high = of_copy.data[0]["x"]
    assert of_copy.data[0]["y"] == pytest.approx([low * bandwidth, high * bandwidth])
    assert of_copy.data[1]["text"] == ["gelu 512x2048 bfloat16 approximate=none"]  # the CPU's only other
    flat = figures.draw(views["linear", "cuda"], places)["roofline"].variants[0].data[0]
    assert flat["y"][0] == flat["y"][1]
    assert flat["name"].startswith("ceiling: a matrix product")


def test_the_work_of_a_changed_function_is_not_known() -> None:
    assert roof.cost(results.SOFTMAX) is not None
    assert roof.cost(replace(results.SOFTMAX, program="another")) is None


def test_texts_are_drawn_as_they_are(views: Views) -> None:
    assert literal("<b>a & b</b>") == "&lt;b&gt;a &amp; b&lt;/b&gt;"
    peer = replace(views["softmax", "cuda"].compared[3], name="<a href=x>")
    view = replace(views["softmax", "cuda"], compared=(peer,))
    assert "<a" not in json.dumps(figures.draw(view)["distribution"].to_json())


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.06), (54.0, 84.0), (30.0, 9000.0), (0.5, 3e6), (7.0, 7.0)])
def test_an_axis_has_a_handful_of_round_numbers(low: float, high: float) -> None:
    axis = log_axis([low, high], "time (µs)")
    assert 3 <= len(axis["tickvals"]) <= 9
    assert all(low * 0.7 <= tick <= high * 1.5 for tick in axis["tickvals"])
    assert ticks(1.0, 1000.0) == [1.0, 10.0, 100.0, 1000.0]


def test_plots_without_a_candidate_are_empty() -> None:
    plots = Plots([Row(0, {"a": 1}, Outcome(Status.WRONG))])
    assert plots.importances == {}
    assert plots.times_us == []

"""Figures of a search: how it converged, and what its parameters do.

Optuna makes the plots; they are redrawn here in a page's colours and units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ksearch.pages.plotting import TIME, Figure, Layout, Trace, Variant, literal, log_axis, ticks
from ksearch.pages.views import WorkloadView
from ksearch.search.plots import Plots
from ksearch.store import Evaluation
from ksearch.types import Status

_PAUSE_S = 300.0
"""A longer gap between two candidates lies between two runs of a search."""

_GROUPS = 5
"""Of equally many candidates, that parallel coordinates are drawn in: a trace for each would take 0.5 KB."""

_SPREAD, _APART = 0.5, 0.06
"""Of the room between two values: over how much a slice's points, and parallel lines, are spread."""

_MOST_VALUES = 12
"""Written beside one of the parallel axes: more would lie on one another."""

_NOTHING_VARIES = "Fewer than two candidates passed, or no parameter had two values among them."


def convergence(view: WorkloadView, plots: Plots) -> Figure:
    """The best so far, against trials and against seconds of search."""
    points, best, *_ = plots.history()["data"]
    numbers, times = [int(n) for n in points["x"]], [float(y) for y in points["y"]]
    seconds, pauses = _seconds(view.evaluations)
    by_time = sorted(range(len(numbers)), key=lambda k: seconds[numbers[k]])
    failed = [each for each in view.evaluations if each.outcome.status is not Status.PASSED]
    trials = {each.number: float(each.number) for each in view.evaluations}
    in_order = [times[k] for k in by_time]
    note = f"Left out of the time: {pauses} pause(s) between runs." if pauses else ""
    return Figure(
        (
            _converging(view, "by trial", "trial", trials, numbers, times, best["y"], failed),
            _converging(
                view,
                "by time",
                "time of search (s)",
                seconds,
                [numbers[k] for k in by_time],
                in_order,
                list(itertools.accumulate(in_order, min)),
                failed,
            ),
        ),
        note=note,
    )


def _converging(
    view: WorkloadView,
    label: str,
    axis: str,
    place: dict[int, float],
    numbers: Sequence[int],
    times: Sequence[float],
    best: Sequence[float],
    failed: Sequence[Evaluation],
) -> Variant:
    """`place` is where on the axis a trial stands; `numbers`, `times` and `best` are in that order."""
    x = [place[number] for number in numbers]
    data: list[Trace] = [
        {
            "type": "scatter", "mode": "markers", "name": "candidates", "x": x, "y": list(times),
            "marker": {"color": "@muted", "size": 5, "opacity": 0.55},
            "customdata": list(numbers), "hovertemplate": "trial %{customdata}: %{y:.4~g} µs<extra></extra>",
        },
        {
            "type": "scatter", "mode": "lines", "name": "best so far", "x": x, "y": list(best),
            "line": {"color": "@accent", "width": 2, "shape": "hv"},
            "hovertemplate": "best so far: %{y:.4~g} µs<extra></extra>",
        },
    ]  # fmt: skip
    guides = [(each.name, each.time_us) for each in view.compared if each.kind in ("pytorch", "ceiling")]
    highest = max((time_us for _, time_us in guides), default=0.0)
    layout: Layout = {
        "xaxis": {"title": {"text": axis}, "rangemode": "tozero"},
        "yaxis": log_axis([*times, *(time_us for _, time_us in guides)], TIME),
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": time_us, "y1": time_us,
                "line": {"color": "@strong", "width": 1, "dash": "dash"}, "layer": "below",
            }
            for _, time_us in guides
        ],
        "annotations": [  # their place on a logarithmic axis is the exponent
            {
                "xref": "paper", "x": 1, "xanchor": "right", "text": literal(name), "showarrow": False,
                "yref": "y", "y": math.log10(time_us), "yanchor": "bottom" if time_us == highest else "top",
                "font": {"color": "@strong", "size": 11}, "bgcolor": "@page", "borderpad": 1,
            }
            for name, time_us in guides
        ],
    }  # fmt: skip
    if failed:
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "failed", "yaxis": "y2",
                "x": [place[each.number] for each in failed], "y": [0.98] * len(failed),
                "marker": {"color": "@danger", "symbol": "x-thin-open", "size": 6},
                "text": [f"trial {each.number}: {each.outcome.status}" for each in failed],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )  # fmt: skip
        layout["yaxis2"] = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
    return Variant(label, data, layout)


def _seconds(evaluations: Sequence[Evaluation]) -> tuple[dict[int, float], int]:
    """Of search, from the first candidate to each, by number; and how many pauses are left out."""
    ordered = sorted(evaluations, key=lambda each: each.created)
    at, pauses, passed_s = {}, 0, 0.0
    before = None
    for each in ordered:
        now = datetime.fromisoformat(each.created)
        gap_s = 0.0 if before is None else (now - before).total_seconds()
        if gap_s > _PAUSE_S:
            pauses += 1
        else:
            passed_s += gap_s
        at[each.number], before = passed_s, now
    return at, pauses


def importances(plots: Plots) -> Figure:
    """Bars, the most important at the top."""
    if not plots.importances:
        return Figure(empty=_NOTHING_VARIES)
    bars = plots.importance_bars()["data"][0]
    shares = [100 * float(share) for share in bars["x"]]
    trace: Trace = {
        "type": "bar", "orientation": "h", "x": shares, "y": bars["y"],
        "marker": {"color": "@accent"}, "text": [f"{share:.0f} %" for share in shares],
        "textposition": "outside", "cliponaxis": False, "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
    }  # fmt: skip
    layout: Layout = {
        "xaxis": {"title": {"text": "importance (%)"}, "range": [0, max(shares) * 1.15]},
        "yaxis": {"type": "category"},
        "showlegend": False,
    }
    return Figure((Variant("", [trace], layout),))


def slices(view: WorkloadView, plots: Plots) -> Figure:
    """One variant for each parameter, the most important first."""
    ranked = plots.importances
    if not ranked:
        return Figure(empty=_NOTHING_VARIES)
    chosen = {each.name: each.value for each in view.config}
    return Figure(tuple(_slice(plots, name, chosen.get(name)) for name in ranked))


def _slice(plots: Plots, name: str, chosen: str | None) -> Variant:
    points = plots.slice(name)["data"][0]
    values = [str(value) for value in plots.axes[name]]
    numbers, times = points["marker"]["color"], [float(y) for y in points["y"]]
    # Each value's points are spread in order of trial: equal times would lie on one another.
    last = max(numbers) or 1
    x = [
        round(values.index(value) + _SPREAD * (number / last - 0.5), 2)
        for value, number in zip(points["x"], numbers, strict=True)
    ]
    shown = [f"<b>{literal(value)}</b>" if value == chosen else literal(value) for value in values]
    data: list[Trace] = [
        {
            "type": "scatter", "mode": "markers", "x": x, "y": times, "customdata": numbers,
            "marker": {"color": "@accent", "size": 6, "opacity": 0.5},
            "hovertemplate": "trial %{customdata}: %{y:.4~g} µs<extra></extra>",
        }
    ]  # fmt: skip
    layout: Layout = {
        "xaxis": {
            "title": {"text": literal(name)}, "tickmode": "array", "tickvals": list(range(len(values))),
            "ticktext": shown, "range": [-0.5, len(values) - 0.5], "showgrid": False, "zeroline": False,
        },
        "yaxis": log_axis(times, TIME),
        "showlegend": False,
    }  # fmt: skip
    return Variant(name, data, layout)


def parallel(plots: Plots) -> Figure:
    """Candidates in groups by time: Optuna's lines, cut by `None` into one trace for each group."""
    if not plots.importances:
        return Figure(empty=_NOTHING_VARIES)
    drawn, times = plots.parallel(), plots.times_us
    lines = [line for line in drawn["data"] if line["mode"] == "lines"]
    slowest_first = sorted(range(len(times)), key=lambda k: -times[k])
    low, high = math.log10(min(times)), math.log10(max(times))
    span = (high - low) or 1.0
    groups = min(_GROUPS, len(times))
    names = ["slowest", *["slower"] * (groups - 2), "fastest"]
    data: list[Trace] = []
    for group in range(groups):
        begin, end = (round(each * len(times) / groups) for each in (group, group + 1))
        x: list[float | None] = []
        y: list[float | None] = []
        for k in slowest_first[begin:end]:
            # Equal values lie a little apart, so that many lines look like more than one.
            apart = _APART * (k * 0.618 % 1 - 0.5)
            x += [*lines[k]["x"], None]
            y += [(math.log10(times[k]) - low) / span, *(each + apart for each in lines[k]["y"][1:]), None]
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": f"{names[group]} {100 // groups} %",
                "x": x, "y": y, "hoverinfo": "skip",
                "line": {"color": f"@scale{_GROUPS - groups + group}", "width": 1},
                "showlegend": group in (0, groups - 1),
            }
        )  # fmt: skip
    time_ticks = [
        {"x": 0, "y": (math.log10(tick) - low) / span, "text": f"{tick:,.6g}"}
        for tick in (ticks(min(times), max(times)) if high > low else times[:1])
    ]
    return Figure((Variant("", data, _parallel_layout(drawn["layout"], time_ticks)),))


def _parallel_layout(drawn: dict[str, Any], time_ticks: Sequence[Layout]) -> Layout:
    """Optuna's ticks, but for those of the time, whose axis is logarithmic here."""
    by_axis = itertools.groupby(drawn["annotations"], key=lambda note: note["x"])
    values = [note for x, notes in by_axis if x != 0 for note in _thinned(list(notes))]
    label = {"font": {"color": "@text", "size": 11}, "bgcolor": "@page", "borderpad": 1, "showarrow": False}
    place = {"xanchor": "right", "xshift": -4}
    notes = [
        {"x": note["x"], "y": note["y"], "text": literal(note["text"]), **place, **label}
        for note in (*time_ticks, *values)
    ]
    shapes = [{**shape, "line": {"color": "@line", "width": 1}} for shape in drawn["shapes"]]
    names = [literal(name) for name in drawn["xaxis"]["ticktext"]]
    return {
        "xaxis": {**drawn["xaxis"], "ticktext": [TIME, *names[1:]], "fixedrange": True},
        "yaxis": drawn["yaxis"],
        "annotations": notes,
        "shapes": shapes,
        "showlegend": True,
        "margin": {"l": 44, "r": 16, "t": 8, "b": 8},  # room for the first axis's numbers
    }


def _thinned(notes: list[Layout]) -> list[Layout]:
    """Every second, third, ... of a long axis, and the last."""
    step = math.ceil(len(notes) / _MOST_VALUES)
    return notes[::-1][::step]

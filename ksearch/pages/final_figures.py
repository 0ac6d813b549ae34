"""Figures of the final comparison: its samples, and where the workload stands under the device's roof."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from ksearch.evaluate.confidence import bootstrap_ci
from ksearch.pages.evidence import Compared
from ksearch.pages.plotting import COLOURS, TIME, Figure, Layout, Trace, Variant, literal, log_axis
from ksearch.pages.roof import Place, place
from ksearch.pages.views import WorkloadView

_FEWEST = 3
"""Samples that a distribution is drawn of."""

_SYMBOLS = {"winner": "circle", "runner_up": "circle-open", "pytorch": "square", "peer": "triangle-up"}


def distribution(view: WorkloadView) -> Figure:
    """Samples of all that ran side by side, and the speed-up of each round."""
    drawn = [each for each in view.compared if len(each.samples_us) >= _FEWEST and each.kind != "ceiling"]
    if not drawn:
        return Figure(empty="The certificate keeps no samples of a final.")
    note = ""
    if all(each.kind != "runner_up" for each in drawn):
        note = "The samples of a runner-up were not kept with this winner."
    variants = [times(drawn)]
    speedups = _speedups(view, drawn)
    if speedups is not None:
        variants.append(speedups)
    return Figure(tuple(variants), note=note)


def times(drawn: Sequence[Compared]) -> Variant:
    data: list[Trace] = []
    for each in drawn:
        name, colour, samples = literal(each.name), COLOURS[each.kind], list(each.samples_us)
        low, high = bootstrap_ci(samples, [1.0] * len(samples))  # of the median itself
        middle = statistics.median(samples)
        data += [
            {
                "type": "box", "orientation": "h", "name": name, "x": samples,
                "y": [name] * len(samples), "boxpoints": "all", "jitter": 0.6, "pointpos": 0,
                "marker": {"color": colour, "size": 4, "opacity": 0.45},
                "line": {"color": colour, "width": 1}, "fillcolor": "rgba(0,0,0,0)", "hoverinfo": "x",
                "showlegend": False, "whiskerwidth": 0.4,
            },
            {
                "type": "scatter", "mode": "markers", "x": [middle], "y": [name], "showlegend": False,
                "marker": {"color": colour, "size": 9, "symbol": "diamond"},
                "error_x": {
                    "type": "data", "symmetric": False, "array": [high - middle],
                    "arrayminus": [middle - low], "color": colour, "thickness": 3, "width": 7,
                },
                "text": [f"median {middle:.4g} µs, 95 % interval {low:.4g} to {high:.4g} µs"],
                "hovertemplate": "%{text}<extra></extra>",
            },
        ]  # fmt: skip
    layout: Layout = {
        "xaxis": {"title": {"text": TIME}, "tickformat": ",~r"},
        "yaxis": {"type": "category", "autorange": "reversed"},
        "showlegend": False,
    }
    return Variant("times", data, layout)


def _speedups(view: WorkloadView, drawn: Sequence[Compared]) -> Variant | None:
    """Of each round over PyTorch: what slowed a whole round down cancels."""
    samples = {each.kind: each.samples_us for each in drawn}
    ours, base = samples.get("winner"), samples.get("pytorch")
    if not ours or not base or len(ours) != len(base):
        return None
    ratios = [b / a for a, b in zip(ours, base, strict=True) if a > 0]
    data: list[Trace] = [
        {
            "type": "scatter", "mode": "markers", "name": "one round", "x": list(range(1, len(ratios) + 1)),
            "y": ratios, "marker": {"color": "@accent", "size": 6, "opacity": 0.6},
            "hovertemplate": "round %{x}: %{y:.3f}x<extra></extra>",
        }
    ]  # fmt: skip
    shapes = [_level(1.0, "@strong", "dash")]
    if interval := view.row.interval:
        low, high = interval
        shapes.append(
            {
                "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high, "layer": "below",
                "fillcolor": "@accent", "opacity": 0.18, "line": {"width": 0},
            }
        )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "95 % interval of the median", "x": [None],
                "y": [None], "line": {"color": "@accent", "width": 8}, "opacity": 0.3, "hoverinfo": "skip",
            }
        )  # fmt: skip
    layout: Layout = {
        "xaxis": {"title": {"text": "round"}},
        "yaxis": {"title": {"text": "times as fast as PyTorch (x)"}, "ticksuffix": "x"},
        "shapes": shapes,
        "showlegend": True,
    }
    return Variant("speed-up by round", data, layout)


def _level(y: float, colour: str, dash: str) -> Layout:
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "layer": "below",
        "line": {"color": colour, "width": 1, "dash": dash},
    }  # fmt: skip


def roofline(view: WorkloadView, others: Sequence[Place]) -> Figure:
    """The measured ceiling, what ran below it, and this device's other workloads in the background."""
    if view.winner is None:
        return Figure(empty="No final was run yet, so no ceiling is known.")
    here = place(view.winner)
    if here is None:
        return Figure(
            empty="The op is not known here, or its function has changed since, so its work is not known."
        )
    near = [each for each in others if each.device == here.device and each.name != here.name]
    x = [here.intensity, *(each.intensity for each in near)]
    low, high = min(x) / 2, max(x) * 2
    roof = _roof(here, low, high, is_linear=view.workload.inner > 0)
    marks = [*([_neighbours(near)] if near else []), *_ran(view.compared, here)]
    rates = [here.rate(here.ceiling_us), *(y for trace in marks for y in trace["y"])]
    layout: Layout = {
        "xaxis": log_axis([low, high], "operations for each byte that must move"),
        "yaxis": log_axis([min(rates) / 1.5, max(rates) * 1.5], "Gop/s"),
        "showlegend": True,
    }
    return Figure((Variant("", [roof, *marks], layout),))


def _roof(here: Place, low: float, high: float, *, is_linear: bool) -> Trace:
    """What bounds every kernel between two intensities: the rate of a product, or the bandwidth of a copy."""
    if is_linear:
        top = here.rate(here.ceiling_us)
        y, name = [top, top], f"ceiling: a matrix product, {top:,.4g} Gop/s"
    else:
        y = [here.bandwidth * low, here.bandwidth * high]
        name = f"ceiling: a copy, {here.bandwidth:,.4g} GB/s"
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": [low, high], "y": y,
        "line": {"color": "@strong", "width": 1.5}, "hoverinfo": "skip",
    }  # fmt: skip


def _neighbours(near: Sequence[Place]) -> Trace:
    return {
        "type": "scatter", "mode": "markers", "name": "other workloads here",
        "x": [each.intensity for each in near], "y": [each.rate(each.time_us) for each in near],
        "marker": {"color": "@muted", "size": 6, "opacity": 0.5},
        "text": [literal(each.name) for each in near],
        "hovertemplate": "%{text}: %{y:.4~g} Gop/s<extra></extra>",
    }  # fmt: skip


def _ran(compared: Sequence[Compared], here: Place) -> Iterator[Trace]:
    """What ran in the final, each by its rate."""
    for each in compared:
        if each.kind == "ceiling":
            continue
        rate, name = here.rate(each.time_us), literal(each.name)
        moved = here.cost.bytes / each.time_us / 1e3
        yield {
            "type": "scatter", "mode": "markers", "name": f"{name}, {each.percent_of_ceiling:.0f} %",
            "x": [here.intensity], "y": [rate],
            "marker": {"color": COLOURS[each.kind], "size": 11, "symbol": _SYMBOLS[each.kind]},
            "text": [f"{name}: {rate:,.4g} Gop/s, {moved:,.4g} GB/s"],
            "hovertemplate": "%{text}<extra></extra>",
        }  # fmt: skip

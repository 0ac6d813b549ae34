"""The figures of a workload: which there are, and each as plain JSON that `html/page.js` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ksearch.pages import final_figures, search_figures
from ksearch.pages.plotting import Figure
from ksearch.pages.roof import Place
from ksearch.pages.views import WorkloadView
from ksearch.search.mirror import Row
from ksearch.search.plots import Plots


@dataclass(frozen=True, slots=True)
class Plan:
    """What a page leaves room for."""

    name: str
    title: str
    about: str
    is_wide: bool = False


PLANS = (
    Plan(
        "convergence",
        "Convergence",
        "Screening times of the candidates that passed, and the best so far.",
        is_wide=True,
    ),
    Plan("distribution", "Final", "Samples taken in turns, with the 95 % interval of each median."),
    Plan("roofline", "Roofline", "What runs, below the ceiling that was measured on this device."),
    Plan("importances", "Importances", "How much of what makes a candidate fast each parameter decides."),
    Plan("slices", "Slices", "Screening times by the values of one parameter; the winner's is bold."),
    Plan("parallel", "Parallel coordinates", "Each line is a candidate, the fastest on top.", is_wide=True),
)


def draw(view: WorkloadView, others: Sequence[Place] = ()) -> dict[str, Figure]:
    """Every figure of `PLANS` by name; `others` are the device's workloads that the roofline shows as well.

    Raises ToolMissing where plotly is not installed.
    """
    found = {
        "distribution": final_figures.distribution(view),
        "roofline": final_figures.roofline(view, others),
    }
    if not view.evaluations:
        why = "The candidates of this search are not in the database: it came from a bundle or a merge."
    else:
        why = "No candidate passed, so there is nothing to draw; the failures below say why."
    plots = Plots([Row(each.number, each.config, each.outcome) for each in view.evaluations])
    of_search: dict[str, Callable[[], Figure]] = {
        "convergence": lambda: search_figures.convergence(view, plots),
        "importances": lambda: search_figures.importances(plots),
        "slices": lambda: search_figures.slices(view, plots),
        "parallel": lambda: search_figures.parallel(plots),
    }
    for name, make in of_search.items():
        found[name] = make() if view.passed else Figure(empty=why)
    return {plan.name: found[plan.name] for plan in PLANS}

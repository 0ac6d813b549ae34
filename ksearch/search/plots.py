"""Optuna's plots of a search, as plain JSON that plotly.js draws. Needs the extra `report` (plotly)."""

from __future__ import annotations

import functools
import json
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import optuna
from optuna import visualization
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from ksearch.errors import ToolMissing
from ksearch.search.mirror import Row
from ksearch.types import ConfigValue, Status

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Plot: TypeAlias = dict[str, Any]
"""`data` and `layout`, as plotly.js takes them, in plain lists and numbers."""


class Plots:
    """Of one search; those of its candidates that passed are what is drawn.

    Raises ToolMissing where plotly is not installed. Without a candidate that passed the plots are empty.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        if not visualization.is_available():
            raise ToolMissing("figures need plotly: pip install 'ksearch[report]'")
        storage = optuna.storages.InMemoryStorage()
        self._study = _Study(optuna.create_study(storage=storage).study_name, storage)
        passed = [row for row in rows if row.outcome.status is Status.PASSED]
        # A choice for each value in use: a step from 128 to 256 is as far as one from 256 to 512.
        used: dict[str, dict[ConfigValue, None]] = {}
        for row in passed:
            for name, value in row.config.items():
                used.setdefault(name, {})[value] = None
        axes = {name: CategoricalDistribution(_ordered(list(values))) for name, values in used.items()}
        self.axes = {name: axis.choices for name, axis in axes.items() if len(axis.choices) > 1}
        """The parameters of which more than one value passed, and the values in order."""
        self._study.add_trials(
            [
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE,
                    value=row.outcome.time_us,
                    params=dict(row.config),
                    distributions={name: axes[name] for name in row.config},
                )
                for row in passed
            ]
        )
        self._names = list(self.axes)
        self._numbers = [row.number for row in passed]
        self._times_us = [row.outcome.time_us or 0.0 for row in passed]

    @property
    def times_us(self) -> list[float]:
        """Of the candidates that passed, in the order given."""
        return list(self._times_us)

    @functools.cached_property
    def importances(self) -> dict[str, float]:
        """How much of what makes a candidate fast each parameter decides, the most important first.

        The sum is 1. Empty where no parameter has two values, or fewer than two candidates passed.
        """
        if len(self._times_us) < 2 or not self._names:
            return {}
        return optuna.importance.get_param_importances(self._study, params=self._names)

    def history(self) -> Plot:
        """Times by trial, and the best so far."""
        found = _plain(visualization.plot_optimization_history(self._study))
        for trace in found["data"]:
            trace["x"] = [self._numbers[index] for index in trace["x"]]
        return found

    def importance_bars(self) -> Plot:
        return _plain(visualization.plot_param_importances(self._study, params=self._names))

    def parallel(self) -> Plot:
        """One line for each candidate, in the order given."""
        return _plain(
            visualization.plot_parallel_coordinate(self._study, params=self._names, target_name="µs")
        )

    def slice(self, name: str) -> Plot:
        """Times by the values of one parameter; the colour is the trial."""
        found = _plain(visualization.plot_slice(self._study, params=[name]))
        points = found["data"][0]
        written = {repr(value): str(value) for value in self.axes[name]}  # Optuna quotes texts here
        points["x"] = [written.get(value, value) for value in points["x"]]
        points["marker"]["color"] = [self._numbers[index] for index in points["marker"]["color"]]
        return found


class _Study(optuna.Study):
    """One whose trials nobody changes: the plots copy all of them dozens of times, half of what they take."""

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return super().get_trials(deepcopy=False, states=states)


def _ordered(values: list[ConfigValue]) -> tuple[ConfigValue, ...]:
    """Numbers by size, what is no number by its name."""
    numeric = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return tuple(sorted(values, key=None if numeric else str))


def _plain(figure: Figure) -> Plot:
    found: Plot = json.loads(figure.to_json(engine="json"))
    found["layout"].pop("template", None)
    return found

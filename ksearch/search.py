"""Which config to try next: Optuna's samplers over an enumerated valid set. The only file that knows Optuna.

A proposal that is invalid or already tried is moved to the nearest untried valid config, so no trial
is ever wasted on either; 300 TPE trials over 80,000 points would otherwise repeat 40 of them.
"""

from __future__ import annotations

import bisect
import random
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from ksearch.errors import UsageError
from ksearch.families.base import Space
from ksearch.types import Config, ConfigValue, Outcome, Status, canonical_json

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SAMPLERS = ("tpe", "random", "exhaustive")


@dataclass(slots=True)
class Trial:
    """One proposed config; `outcome` is None until it is told."""

    number: int
    config: dict[str, ConfigValue]
    outcome: Outcome | None = None
    asked: optuna.Trial | None = None
    """Optuna's own, where the config is exactly what the sampler proposed."""


class Study:
    """Asks for configs of a space, each at most once, and learns from what they turn out to be.

    `sampler` is `tpe`, `random` or `exhaustive`; a budget of trials that covers the whole valid set
    makes any of them exhaustive. `guesses` come first, each moved to the nearest valid config.
    Raises UsageError where the space has no valid config or the sampler is unknown.
    """

    def __init__(
        self,
        space: Space,
        *,
        sampler: str = "tpe",
        seed: int = 0,
        trials: int | None = None,
        guesses: Iterable[Config] = (),
    ) -> None:
        if sampler not in SAMPLERS:
            raise UsageError(f"no sampler {sampler!r}: use {', '.join(SAMPLERS)}")
        self.trials: list[Trial] = []
        self._machine_code: dict[str, Trial] = {}
        self._space = space
        self._points = _Points(space)
        everything = sampler == "exhaustive" or (trials is not None and trials >= len(self._points.configs))
        self._tpe = sampler == "tpe" and not everything
        self._order = list(range(len(self._points.configs)))
        random.Random(seed).shuffle(self._order)
        self._guesses = deque(dict(guess) for guess in guesses)
        self._study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))

    @property
    def size(self) -> int:
        """Number of valid configs."""
        return len(self._points.configs)

    def ask(self) -> Trial | None:
        """The next config to try, or None when every valid one has been tried."""
        if not self._points.left:
            return None
        asked = None
        if self._guesses:
            index = self._points.nearest(self._guesses.popleft())
        elif self._tpe:
            asked = self._study.ask(self._points.distributions)
            index = self._points.nearest(self._points.decode(asked.params))
            if self._points.encode(self._points.configs[index]) != asked.params:
                # Moved: the proposal itself says nothing to the sampler (TPE ignores FAIL).
                self._study.tell(asked, state=TrialState.FAIL)
                asked = None
        else:
            index = next(i for i in iter(self._order.pop, None) if not self._points.taken[i])
        self._points.take(index)
        trial = Trial(len(self.trials), self._points.configs[index], None, asked)
        self.trials.append(trial)
        return trial

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """A failed candidate ranks worst: PRUNED. TPE would ignore a FAIL and propose around it again."""
        trial.outcome = outcome
        state = TrialState.COMPLETE if outcome.status is Status.PASSED else TrialState.PRUNED
        if trial.asked is not None:
            self._study.tell(trial.asked, outcome.time_us, state=state)
            trial.asked = None
        else:
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    value=outcome.time_us,
                    params=self._points.encode(trial.config),
                    distributions=self._points.distributions,
                )
            )

    def replay(self, config: Config, outcome: Outcome) -> bool:
        """Take over an earlier run's result; False where its config is no longer in the space."""
        index = self._points.find(config)
        if index is None or self._points.taken[index]:
            return False
        self._points.take(index)
        trial = Trial(len(self.trials), self._points.configs[index])
        self.trials.append(trial)
        self.tell(trial, outcome)
        return True

    def twin(self, trial: Trial, machine_code: str) -> Outcome | None:
        """The outcome of an earlier trial that compiled to the same machine code and launch."""
        first = self._machine_code.setdefault(machine_code, trial)
        return first.outcome

    @property
    def done(self) -> int:
        return sum(trial.outcome is not None for trial in self.trials)

    @property
    def best_us(self) -> float | None:
        best = self.best(1)
        return best[0].outcome.time_us if best and best[0].outcome else None

    def best(self, count: int) -> list[Trial]:
        """The fastest passed trials, fastest first."""
        timed = [
            (t.outcome.time_us, t.number, t)
            for t in self.trials
            if t.outcome and t.outcome.time_us is not None
        ]
        return [trial for _, _, trial in sorted(timed)[:count]]

    def failures(self) -> dict[str, int]:
        """How many failed, by status."""
        return dict(Counter(status for status, _ in self._failed()))

    def first_failures(self) -> dict[str, str]:
        """The first message of each status."""
        return dict(reversed(self._failed()))

    def _failed(self) -> list[tuple[str, str]]:
        return [
            (t.outcome.status.value, t.outcome.message)
            for t in self.trials
            if t.outcome and not t.outcome.time_us
        ]

    def mirror(self, url: str, name: str) -> None:
        """Write the told trials into Optuna's own tables, so that optuna-dashboard opens the file.

        Done once at the end, 13 ms a trial: live, the search would wait for that at every step.
        Raises the database's own errors.
        """
        with _tables(url) as storage:
            study = optuna.create_study(
                storage=storage, study_name=name, direction="minimize", load_if_exists=True
            )
            # By config: a resumed study counts anew, without those that were asked and never told.
            done = {canonical_json(t.params) for t in study.get_trials(deepcopy=False)}
            # All values, not those in use: a rule may change, a choice of Optuna's may not.
            choices: dict[str, BaseDistribution] = {
                name: CategoricalDistribution(values) for name, values in self._space.values.items()
            }
            for trial in self.trials:
                if trial.outcome is None or canonical_json(trial.config) in done:
                    continue
                passed = trial.outcome.status is Status.PASSED
                study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.COMPLETE if passed else TrialState.PRUNED,
                        value=trial.outcome.time_us,
                        params=dict(trial.config),
                        distributions=choices,
                        user_attrs={
                            "number": trial.number,
                            "status": str(trial.outcome.status),
                            "message": trial.outcome.message,
                        },
                    )
                )


@contextmanager
def _tables(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """Optuna's storage, which wraps some errors of the database and not others: none of them here."""
    try:
        storage = optuna.storages.RDBStorage(url)
        try:
            yield storage
        finally:
            storage.engine.dispose()
    except optuna.exceptions.StorageInternalError as error:
        raise error.__cause__ or error from None


class _Points:
    """The valid set as columns of ranks, to find the nearest untried config to a proposal in about 1 ms."""

    def __init__(self, space: Space) -> None:
        self.configs = list(space)
        if not self.configs:
            raise UsageError("no config of the family's space is valid for this workload on this device")
        found: dict[str, dict[ConfigValue, None]] = {name: {} for name in space.values}
        for config in self.configs:
            for name, value in config.items():
                found[name][value] = None
        self._ordered = {
            name: all(isinstance(v, int) and not isinstance(v, bool) for v in values)
            for name, values in found.items()
        }
        self.values: dict[str, list[ConfigValue]] = {
            name: sorted(values) if self._ordered[name] else list(values) for name, values in found.items()
        }
        # Ordered parameters go to Optuna as ranks, so that 256 lies between 128 and 512 for the sampler.
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(values) - 1)
            if self._ordered[name]
            else CategoricalDistribution(values)
            for name, values in self.values.items()
        }
        self._rank = {name: {v: i for i, v in enumerate(values)} for name, values in self.values.items()}
        self._index = {self._ranks(config): i for i, config in enumerate(self.configs)}
        self._columns = np.array(list(self._index), dtype=np.intp).reshape(len(self.configs), -1).T.copy()
        self.taken = np.zeros(len(self.configs), dtype=bool)
        self.left = len(self.configs)

    def _ranks(self, config: Config) -> tuple[int, ...]:
        return tuple([ranks[config[name]] for name, ranks in self._rank.items()])

    def encode(self, config: Config) -> dict[str, ConfigValue]:
        """As Optuna sees it."""
        return {name: self._rank[name][v] if self._ordered[name] else v for name, v in config.items()}

    def decode(self, params: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
        return {n: self.values[n][int(v)] if self._ordered[n] else v for n, v in params.items()}

    def find(self, config: Config) -> int | None:
        try:
            return self._index.get(self._ranks(config))
        except KeyError:
            return None

    def nearest(self, config: Config) -> int:
        """The untried valid config that differs least: a step in an ordered axis is a part of a change."""
        if (exact := self.find(config)) is not None and not self.taken[exact]:
            return exact
        distance = self.taken * 1e9
        for (name, values), column in zip(self.values.items(), self._columns, strict=True):
            wanted = config.get(name)
            if self._ordered[name] and isinstance(wanted, int):
                place = bisect.bisect_left(values, wanted)
                steps = np.abs(np.arange(len(values)) - place) / max(1, len(values) - 1)
            else:
                steps = np.array([float(value != wanted) for value in values])
            distance += steps[column]
        return int(distance.argmin())

    def take(self, index: int) -> None:
        self.taken[index] = True
        self.left -= 1

"""Which config to try next, out of the enumerated valid set. The only package that knows Optuna.

Optuna's TPE and a model of what lies near the best take turns. A proposal of TPE that is invalid or already
tried is moved to the nearest untried valid config, so no trial is ever wasted on either; 300 trials over
80,000 points would otherwise repeat 40 of them.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from ksearch.errors import UsageError
from ksearch.families.base import Space
from ksearch.search import mirror
from ksearch.search.model import Model
from ksearch.search.points import Points
from ksearch.types import Config, ConfigValue, Outcome, Status

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SAMPLERS = ("tpe", "random", "exhaustive")

_BEGIN = 10
"""Told trials before the model proposes; TPE's own default, which takes as many random ones first."""

_TURN = 4
"""Every fourth proposal is TPE's, which looks elsewhere. Medians over landscapes fitted to five tables of an
H200, 16 in flight: TPE alone came to 0.992 of the best known in 50 trials and to 0.997 in 100, this to 0.995
and 0.9996; on four made-up ones to 0.977 and 0.994, this to 0.982 and 0.998."""


@dataclass(slots=True)
class Trial:
    """One proposed config; `outcome` is None until it is told."""

    number: int
    config: dict[str, ConfigValue]
    outcome: Outcome | None = None
    asked: optuna.Trial | None = None
    """Optuna's own, where the config is exactly what the sampler proposed."""
    index: int = -1
    """Its place in the valid set."""


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
        """In the order asked; replayed ones first."""
        self._by_number: dict[int, Trial] = {}
        self._next = 0
        self._machine_code: dict[str, Trial] = {}
        self._space = space
        self._points = Points(space)
        everything = sampler == "exhaustive" or (trials is not None and trials >= len(self._points.configs))
        self._tpe = sampler == "tpe" and not everything
        self._order = list(range(len(self._points.configs)))
        random.Random(seed).shuffle(self._order)
        self._guesses = deque(dict(guess) for guess in guesses)
        self._model = Model(self._points, seed)
        self._study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
        # Ordered parameters go to Optuna as ranks, so that 256 lies between 128 and 512 for the sampler.
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(values) - 1)
            if self._points.ordered[name]
            else CategoricalDistribution(values)
            for name, values in self._points.values.items()
        }

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
            by_model = self.done >= _BEGIN and self._next % _TURN > 0
            asked, index = (None, self._from_model()) if by_model else self._from_tpe()
        else:
            index = next(i for i in iter(self._order.pop, None) if not self._points.taken[i])
        return self._begin(index, self._next, asked)

    def _from_model(self) -> int:
        told = [(t.index, t.outcome.time_us) for t in self.trials if t.outcome]
        indices, times = zip(*told, strict=True)
        return self._model.propose(indices, times, [t.index for t in self.trials if not t.outcome])

    def _from_tpe(self) -> tuple[optuna.Trial | None, int]:
        """Optuna's proposal, moved to what is valid and untried; with its trial only if not moved."""
        asked = self._study.ask(self._distributions)
        index = self._points.nearest(self._decode(asked.params))
        if self._encode(self._points.configs[index]) == asked.params:
            return asked, index
        # Moved: the proposal itself says nothing to the sampler (TPE ignores FAIL).
        self._study.tell(asked, state=TrialState.FAIL)
        return None, index

    def _begin(self, index: int, number: int, asked: optuna.Trial | None = None) -> Trial:
        self._points.take(index)
        trial = Trial(number, self._points.configs[index], None, asked, index)
        self._next = max(self._next, number + 1)
        self.trials.append(trial)
        self._by_number[number] = trial
        return trial

    def _encode(self, config: Config) -> dict[str, ConfigValue]:
        """As Optuna sees it."""
        ordered, rank = self._points.ordered, self._points.rank
        return {name: rank[name][value] if ordered[name] else value for name, value in config.items()}

    def _decode(self, params: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
        ordered, values = self._points.ordered, self._points.values
        return {name: values[name][int(v)] if ordered[name] else v for name, v in params.items()}

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
                    params=self._encode(trial.config),
                    distributions=self._distributions,
                )
            )

    def replay(self, config: Config, outcome: Outcome, number: int | None = None) -> bool:
        """Take over an earlier run's result, under the number that it had there; new ones count on from the
        highest. False where its config is no longer in the space."""
        index = self._points.find(config)
        if index is None or self._points.taken[index]:
            return False
        self.tell(self._begin(index, self._next if number is None else number), outcome)
        return True

    def trial(self, number: int) -> Trial:
        """The trial that was asked, or replayed, under that number."""
        return self._by_number[number]

    def twin(self, trial: Trial, machine_code: str) -> Outcome | None:
        """The outcome of an earlier trial that compiled to the same machine code and launch."""
        first = self._machine_code.setdefault(machine_code, trial)
        return first.outcome

    @property
    def outcomes(self) -> list[Outcome]:
        """Of the told trials."""
        return [trial.outcome for trial in self.trials if trial.outcome is not None]

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
        return [trial for _, _, trial in sorted(timed, key=lambda known: known[:2])[:count]]

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
        """Write the told trials into Optuna's own tables. Raises the database's own errors."""
        told = [mirror.Row(t.number, t.config, t.outcome) for t in self.trials if t.outcome is not None]
        mirror.write(url, name, self._space.values, told)

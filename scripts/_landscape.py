"""What is known of one workload's configs: outcomes, kept as JSON lines, and searches run over them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ksearch.families.base import Space
from ksearch.promotion import FINALISTS
from ksearch.search import Study, Trial
from ksearch.types import Config, ConfigValue, Outcome, Status, Target, canonical_json


class Listed(Space):
    """A space that is a list of its valid configs."""

    def __init__(self, values: Mapping[str, Iterable[ConfigValue]], configs: Iterable[Config]) -> None:
        super().__init__({name: tuple(choices) for name, choices in values.items()}, lambda _: True)
        object.__setattr__(self, "_configs", [dict(config) for config in configs])

    def __iter__(self) -> Iterator[dict[str, ConfigValue]]:
        return iter(self._configs)  # type: ignore[attr-defined]


@dataclass
class Landscape:
    """Outcomes of some configs of one workload, and what a search of it begins with."""

    workload: str
    target: Target
    values: dict[str, list[ConfigValue]]
    guesses: list[dict[str, ConfigValue]]
    baseline_us: float
    ceiling_us: float
    ahead: int
    """Candidates that a search has in flight."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By `canonical_json(config)`."""
    raced_us: dict[str, float] = field(default_factory=dict)
    """Medians of races, where single screenings are no evidence."""

    def time_us(self, key: str) -> float:
        """Raced if it was; infinite where it failed."""
        screened = self.outcomes[key].time_us
        return self.raced_us.get(key, float("inf") if screened is None else screened)

    @property
    def best_us(self) -> float:
        return min(map(self.time_us, self.raced_us or self.outcomes))

    @property
    def space(self) -> Space:
        return Listed(self.values, map(json.loads, self.outcomes))

    def write(self, path: Path) -> None:
        """Append to a table: one line of facts, then one of each config."""
        facts = asdict(self)
        del facts["outcomes"], facts["raced_us"]
        with gzip.open(path, "at") as file:
            file.write(json.dumps(facts) + "\n")
            for key, outcome in self.outcomes.items():
                line = {
                    "config": json.loads(key),
                    "status": outcome.status,
                    "time_us": outcome.time_us,
                    "spread_us": outcome.spread_us,
                    "raced_us": self.raced_us.get(key),
                }
                file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[Landscape]:
    """The landscapes of a table that `write` made."""
    found: list[Landscape] = []
    with gzip.open(path, "rt") as file:
        for line in file:
            row: dict[str, Any] = json.loads(line)
            if "workload" in row:
                found.append(Landscape(**{**row, "target": Target(**row["target"])}))
                continue
            key = canonical_json(row["config"])
            found[-1].outcomes[key] = Outcome(Status(row["status"]), row["time_us"], row["spread_us"])
            if row["raced_us"] is not None:
                found[-1].raced_us[key] = row["raced_us"]
    return found


def run(
    study: Study,
    trials: int,
    ahead: int,
    finish: Callable[[Config], Outcome],
    begin: Callable[[Config], None] = lambda _: None,
) -> list[Trial]:
    """A search of so many trials, `ahead` of them in flight; told in the order asked, whatever that costs,
    for the result to depend on outcomes alone."""
    waiting: list[Trial] = []
    while True:
        while len(waiting) < ahead and len(study.trials) < trials and (trial := study.ask()) is not None:
            begin(trial.config)
            waiting.append(trial)
        if not waiting:
            return study.trials
        trial = waiting.pop(0)
        study.tell(trial, finish(trial.config))


def finalists(trials: Iterable[Trial]) -> list[str]:
    """What a promotion would race, as keys."""
    timed = [
        (t.outcome.time_us, t.number, t.config) for t in trials if t.outcome and t.outcome.time_us is not None
    ]
    return [canonical_json(config) for _, _, config in sorted(timed, key=lambda t: t[:2])[:FINALISTS]]

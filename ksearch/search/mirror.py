"""Told trials as rows of Optuna's own tables, so that optuna-dashboard opens the file."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState

from ksearch.types import Config, ConfigValue, Outcome, Status, canonical_json


@dataclass(frozen=True, slots=True)
class Row:
    """One told trial."""

    number: int
    config: Config
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Axis:
    """A parameter as Optuna keeps it."""

    distribution: CategoricalDistribution
    text: str

    @classmethod
    def of(cls, choices: Sequence[ConfigValue]) -> _Axis:
        distribution = CategoricalDistribution(tuple(choices))
        return cls(distribution, distribution_to_json(distribution))


def write(url: str, name: str, values: Mapping[str, Sequence[ConfigValue]], rows: Sequence[Row]) -> None:
    """Add to the study of that name the configs that it does not have yet. Raises the database's own errors.

    Rows are inserted in bulk, in one transaction. Optuna's `add_trial` asks the database about every
    parameter of every trial: 12 ms a trial, against 1.
    """
    with _tables(url) as storage:
        study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize", load_if_exists=True
        )
        known = study.get_trials(deepcopy=False)
        # By config: a resumed study counts anew, without those that were asked and never told.
        done = {canonical_json(trial.params) for trial in known}
        fresh = [row for row in rows if canonical_json(row.config) not in done]
        # All values, not those in use: a rule may change, a choice of Optuna's may not.
        axes = {axis: _Axis.of(choices) for axis, choices in values.items()}
        facts: defaultdict[type[models.BaseModel], list[dict[str, Any]]] = defaultdict(list)
        with storage.engine.begin() as connection:
            for number, row in enumerate(fresh, len(known)):
                key = _insert(connection, study._study_id, number, row.outcome)
                for model, fact in _facts(row, axes):
                    facts[model].append({"trial_id": key, **fact})
            for model, found in facts.items():
                connection.execute(model.__table__.insert(), found)


def _insert(connection: Any, study: int, number: int, outcome: Outcome) -> int:
    """A trial without its facts, into Optuna's database: its key. A failed one is PRUNED (`Study.tell`)."""
    now = datetime.now(UTC).replace(tzinfo=None)
    trial = {
        "number": number,
        "study_id": study,
        "state": TrialState.COMPLETE if outcome.status is Status.PASSED else TrialState.PRUNED,
        "datetime_start": now,
        "datetime_complete": now,
    }
    inserted = connection.execute(models.TrialModel.__table__.insert(), trial).inserted_primary_key
    assert inserted is not None
    return int(inserted[0])


def _facts(row: Row, axes: Mapping[str, _Axis]) -> Iterator[tuple[type[models.BaseModel], dict[str, Any]]]:
    """What hangs on a trial: its value, its parameters, what became of it."""
    outcome = row.outcome
    if outcome.status is Status.PASSED:
        yield models.TrialValueModel, {"objective": 0, "value": outcome.time_us, "value_type": "FINITE"}
    for name, value in row.config.items():
        axis = axes[name]
        yield (
            models.TrialParamModel,
            {
                "param_name": name,
                "param_value": axis.distribution.to_internal_repr(value),
                "distribution_json": axis.text,
            },
        )
    about = {"number": row.number, "status": str(outcome.status), "message": outcome.message}
    for name, said in about.items():
        yield models.TrialUserAttributeModel, {"key": name, "value_json": json.dumps(said)}


_ATTEMPTS = 3


def _open(url: str) -> optuna.storages.RDBStorage:
    """Optuna looks for its tables and then makes them: of two tuners that finish at once one fails at that,
    with an error that depends on the table, and finds them all a moment later."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return optuna.storages.RDBStorage(url)
        except Exception:  # noqa: BLE001  (the database's own; the last attempt tells which)
            time.sleep(0.2)
    return optuna.storages.RDBStorage(url)


@contextmanager
def _tables(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """Optuna's storage, which wraps some errors of the database and not others: none of them here."""
    try:
        storage = _open(url)
        try:
            yield storage
        finally:
            storage.engine.dispose()
    except optuna.exceptions.StorageInternalError as error:
        raise error.__cause__ or error from None

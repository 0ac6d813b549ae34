"""Told trials as rows of Optuna's own tables, so that optuna-dashboard opens the file."""

from __future__ import annotations

import json
import time
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
        axes = {axis: CategoricalDistribution(tuple(choices)) for axis, choices in values.items()}
        texts = {axis: distribution_to_json(choices) for axis, choices in axes.items()}
        now = datetime.now(UTC).replace(tzinfo=None)
        details: dict[Any, list[dict[str, Any]]] = {}
        with storage.engine.begin() as connection:
            for number, row in enumerate(fresh, len(known)):
                passed = row.outcome.status is Status.PASSED
                trial = {
                    "number": number,
                    "study_id": study._study_id,
                    "state": TrialState.COMPLETE if passed else TrialState.PRUNED,
                    "datetime_start": now,
                    "datetime_complete": now,
                }
                inserted = connection.execute(
                    models.TrialModel.__table__.insert(), trial
                ).inserted_primary_key
                assert inserted is not None
                key = {"trial_id": inserted[0]}
                if passed:
                    value = {"objective": 0, "value": row.outcome.time_us, "value_type": "FINITE"}
                    details.setdefault(models.TrialValueModel, []).append({**key, **value})
                details.setdefault(models.TrialParamModel, []).extend(
                    {
                        **key,
                        "param_name": axis,
                        "param_value": axes[axis].to_internal_repr(value),
                        "distribution_json": texts[axis],
                    }
                    for axis, value in row.config.items()
                )
                about = {
                    "number": row.number,
                    "status": str(row.outcome.status),
                    "message": row.outcome.message,
                }
                details.setdefault(models.TrialUserAttributeModel, []).extend(
                    {**key, "key": fact, "value_json": json.dumps(value)} for fact, value in about.items()
                )
            for model, facts in details.items():
                connection.execute(model.__table__.insert(), facts)


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

"""SIGKILL to the tuner, anywhere: the same command again ends as if nothing had been."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults import tuning
from tests.faults.told import Told
from tests.faults.tuning import Forks, Run

ROOT = Path(__file__).parents[2]

POINTS = {
    "while tables are made": Run("", "ksearch.store.migrations:_record"),
    "before PyTorch is timed": Run("", "ksearch.evaluate.worker:Worker.start"),
    "while sources are submitted": Run("", "ksearch.evaluate.pool:CompilePool.submit", 2),
    "once a candidate is measured": Run("", "ksearch.evaluate.worker:Worker.screen", 3, after=True),
    "inside the transaction of a record": Run("", "ksearch.store.queries:target_id", 4, after=True),
    "once a candidate is recorded": Run("", "ksearch.store:Store.record", 5, after=True),
    "before the final": Run("", "ksearch.evaluate.worker:Worker.finals"),
    "inside the transaction of the winner": Run("", "ksearch.store.queries:in_force", after=True),
    "once the winner is recorded": Run("", "ksearch.store:Store.promote", after=True),
    "before Optuna's tables are filled": Run("", "ksearch.search.mirror:distribution_to_json"),
    "inside the transaction of Optuna's tables": Run(
        "", "optuna.distributions:CategoricalDistribution.to_internal_repr", 4
    ),
}


def rows(db: Path) -> dict[str, tuple[Any, ...]]:
    """What is recorded, by config; and the file is whole."""
    if not db.exists():
        return {}
    with closing(sqlite3.connect(db)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'evaluations'").fetchone() is None:
            return {}
        found = connection.execute("SELECT config, number, status, time_us, created FROM evaluations")
        return {config: tuple(facts) for config, *facts in found.fetchall()}


def winners(db: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(db)) as connection:
        return connection.execute(
            "SELECT config, time_us, baseline_us FROM winners WHERE superseded IS NULL"
        ).fetchall()


def optuna_trials(db: Path) -> int:
    with closing(sqlite3.connect(db)) as connection:
        return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])


def measured(folder: Path) -> list[str]:
    """The configs that a session was given to measure, in order."""
    log = folder / "log"
    entries = [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []
    return [json.dumps(config) for verb, config, _ in entries if verb == "screen"]


def wait_for_the_last_child(folder: Path) -> None:
    """Whatever the tuner started ends with it."""
    deadline = time.monotonic() + 10

    def left() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            facts = process.info
            mine = (facts["environ"] or {}).get("FAULTS_LOG") == str(folder / "log")
            if mine and facts["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.05)


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(point: str, forks: Forks, tmp_path: Path, told: Told) -> None:
    tuning.write_op(tmp_path)
    db = tmp_path / "k.db"
    assert forks(replace(POINTS[point], folder=str(tmp_path))) == [-9], (tmp_path / "stderr").read_text()
    wait_for_the_last_child(tmp_path)
    before, first = rows(db), measured(tmp_path)
    assert set(before) <= set(first), "only what was measured is recorded"
    assert len(first) - len(before) <= 1, "at most the one at work is lost"
    assert forks(Run(str(tmp_path))) == [0], (tmp_path / "stderr").read_text()
    after, second = rows(db), measured(tmp_path)[len(first) :]
    assert before.items() <= after.items(), "what was recorded stays, and as it was"
    assert not set(before) & set(second), "what was recorded is not measured again"
    assert len(second) == len(set(second))
    steps = {json.loads(config)["step"]: facts[2] for config, facts in after.items()}
    assert steps == {step: 10.0 + step for step in range(1, tuning.CONFIGS + 1)}
    assert len({number for number, *_ in after.values()}) == tuning.CONFIGS
    assert winners(db) == [(None, 1.0, 1.0)]
    assert optuna_trials(db) == tuning.CONFIGS
    told(
        f"tuner killed {point}",
        f"{len(before)} of {len(first)} measured kept, {len(second)} measured after it",
    )

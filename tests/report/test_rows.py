from __future__ import annotations

import json
import math

from ksearch.report import rows
from ksearch.store import Evaluation
from ksearch.tuner import Report
from ksearch.types import Outcome, Status, Winner

TUNED_KEYS = {
    "op", "shape", "dtype", "device", "status", "time_us", "baseline_us", "speedup", "ceiling_us",
    "percent_of_ceiling", "config", "trials", "failures", "elapsed_s", "db",
}  # fmt: skip


def evaluation(number: int, outcome: Outcome) -> Evaluation:
    return Evaluation("study", number, {"simd": 16}, outcome, None, None, 0, 0, 0.0, "")


def test_a_tuned_row_has_every_promised_key_and_is_json(winner: Winner) -> None:
    report = Report(winner, 50, {"wrong": 2}, 48.3, "/x/k.db", {"wrong": "off by one"}, {"compile": 3.0})
    row = json.loads(rows.to_json(rows.tuned_row(report)))
    assert row.keys() >= TUNED_KEYS
    assert row["shape"] == [2048, 4096]
    assert row["status"] == "winner"
    assert math.isclose(row["speedup"], 1880.0 / 1240.25)
    assert math.isclose(row["percent_of_ceiling"], 100 * 1066.0 / 1240.25)
    assert (row["trials"], row["failures"], row["db"]) == (50, {"wrong": 2}, "/x/k.db")


def test_where_pytorch_won_the_row_says_so(baseline: Winner) -> None:
    row = rows.winner_row(baseline, "k.db")
    assert (row["status"], row["config"], row["speedup"]) == ("baseline", None, 1.0)


def test_a_shown_row_counts_trials_by_status(winner: Winner) -> None:
    found = [
        evaluation(0, Outcome(Status.PASSED, time_us=3.0)),
        evaluation(1, Outcome(Status.WRONG, message="zeros")),
        evaluation(2, Outcome(Status.WRONG, message="zeros")),
    ]
    row = rows.shown_row(winner, found, {"torch": "2.13.0"}, "/c/softmax.cpp", "k.db")
    assert (row["trials"], row["failures"]) == (3, {"wrong": 2})
    assert row["launch"]["threads"] == 2
    assert row["certificate"]["torch"] == "2.13.0"
    assert row["environment"] == {"torch": "2.13.0"}


def test_a_trial_row_of_a_failure_has_no_time(winner: Winner) -> None:
    row = rows.trial_row(
        evaluation(7, Outcome(Status.TIMEOUT, message="10 s")), winner.workload, winner.target
    )
    assert (row["number"], row["status"], row["time_us"], row["message"]) == (7, "timeout", None, "10 s")


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    text = rows.to_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}}

"""A study in words: one line for each workload as it ends, and one for all of them at the end."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ksearch.report import text

if TYPE_CHECKING:
    from ksearch.study_run import Result, StudyReport

_COUNTED = {"pytorch": "where PyTorch won", "needs": "not possible yet", "left": "not reached"}


def status(result: Result) -> str:
    """`tuned`, `PyTorch won`, `skipped: had it`, `needs linear`, `failed`, `not reached`."""
    words = {
        "pytorch": "PyTorch won",
        "had": "skipped: had it",
        "needs": result.reason,
        "left": "not reached",
    }
    return words.get(result.state, str(result.state))


def line(result: Result) -> str:
    """`softmax 2048x4096 float32: 1,240 us, 1.52x PyTorch, 86 % of the ceiling, 50 candidates, 12.3 s`."""
    winner = result.winner
    if winner is None:
        more = f": {result.reason}" if result.state in ("failed", "left") else ""
        return f"{result.entry}: {status(result)}{more}"
    numbers = (
        f"{text.time_us(winner.time_us)} us, {text.times(winner.speedup)} PyTorch, "
        f"{text.percent(winner.percent_of_ceiling)} of the ceiling, {result.trials} candidates"
    )
    if result.state == "had":
        return f"{result.entry}: {numbers} (had it)"
    ending = " (PyTorch itself)" if winner.config is None else ""
    return f"{result.entry}: {numbers}, {text.duration(result.elapsed_s)}{ending}"


def troubles(report: StudyReport) -> list[str]:
    """Why each failed workload did, and once why the study ended before its end."""
    failed = [line(result) for result in report.results if result.state == "failed"]
    left = {f"{status(result)}: {result.reason}": None for result in report.results if result.state == "left"}
    return [*failed, *left]


def footer(report: StudyReport) -> str:
    """`study llm: 30 tuned; geometric mean 1.52x PyTorch, 86 % of the ceiling; 12:05; stored in FILE`."""
    states = Counter(_COUNTED.get(result.state, str(result.state)) for result in report.results)
    parts = [f"study {report.study}: {text.counts(states)}"]
    if winners := [result.winner for result in report.results if result.winner is not None]:
        speedup = geometric_mean([winner.speedup for winner in winners])
        ceiling = geometric_mean([winner.percent_of_ceiling for winner in winners])
        parts.append(f"geometric mean {text.times(speedup)} PyTorch, {text.percent(ceiling)} of the ceiling")
    return "; ".join([*parts, text.duration(report.elapsed_s), f"stored in {report.db}"])


def geometric_mean(values: Sequence[float]) -> float:
    """Of those that are positive and finite; NaN where there is none."""
    logarithms = [math.log(value) for value in values if 0 < value < math.inf]
    return math.exp(statistics.fmean(logarithms)) if logarithms else math.nan

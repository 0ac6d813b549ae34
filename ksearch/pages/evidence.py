"""What is known of a winner beside its times: parts of its certificate and of its search, for a page.

Certificates of older versions, or of other hands, lack things: a function leaves out what it does not find.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ksearch.errors import StoreError
from ksearch.launch import Launch
from ksearch.records import UNREADABLE
from ksearch.report import certificate, text
from ksearch.store import Evaluation
from ksearch.types import Config, Status, Winner


@dataclass(frozen=True, slots=True)
class Compared:
    """One of what ran side by side."""

    name: str
    kind: str
    """`winner`, `runner_up`, `pytorch`, `ceiling` or `peer`."""
    time_us: float
    samples_us: tuple[float, ...]
    """One for each round, in order; empty where they were not kept."""
    speedup: float
    """Over PyTorch."""
    percent_of_ceiling: float


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the winner's config; `runner_up` is empty where it is the same."""

    name: str
    value: str
    runner_up: str


@dataclass(frozen=True, slots=True)
class Failure:
    """How many candidates failed for one reason, and what the first of them said."""

    status: str
    count: int
    share: float
    """Of all candidates, 0 to 1."""
    message: str


@dataclass(frozen=True, slots=True)
class RegimeError:
    """The largest error for one kind of values, relative to the largest value of its row."""

    regime: str
    kernel: float | None
    pytorch: float | None


def compared(winner: Winner) -> tuple[Compared, ...]:
    """The winner, the runner-up if its samples were kept, PyTorch, peers, the ceiling."""
    held = winner.certificate
    known: list[tuple[str, str, float | None, Any]] = []
    if winner.config is not None:
        known.append(("ksearch", "winner", winner.time_us, held.get("samples_us")))
    elif held.get("samples_us"):
        known.append(("fastest kernel", "winner", None, held["samples_us"]))
    known += [
        ("runner-up", "runner_up", None, held.get("runner_up_samples_us")),
        ("PyTorch", "pytorch", winner.baseline_us, held.get("baseline_samples_us")),
    ]
    peers = held.get("peers")
    for name, peer in sorted(peers.items()) if isinstance(peers, dict) else ():
        samples = peer if isinstance(peer, list) else []
        known.append((str(name), "peer", peer if isinstance(peer, int | float) else None, samples))
    known.append(("ceiling", "ceiling", winner.ceiling_us, held.get("ceiling_samples_us")))
    found = []
    for name, kind, stated_us, listed in known:
        taken_us = _numbers(listed)
        time_us = statistics.median(taken_us) if stated_us is None and taken_us else stated_us
        if time_us is not None and time_us > 0:
            shares = winner.baseline_us / time_us, 100 * winner.ceiling_us / time_us
            found.append(Compared(name, kind, time_us, taken_us, *shares))
    return tuple(found)


def parameters(winner: Winner | None, known: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Of the winner, or where PyTorch won of the fastest kernel."""
    chosen: Config = (winner and winner.config) or known.get("fastest_config") or {}
    other = known.get("runner_up_config") or {}
    return tuple(
        Parameter(name, str(value), "" if other.get(name, value) == value else str(other[name]))
        for name, value in chosen.items()
    )


def launch(launch: Launch) -> tuple[tuple[str, str], ...]:
    """Of steps before and after, and of tensor maps, how many there are."""
    values = text.launch_values(launch).items()
    return tuple(
        (name, str(len(value)) if isinstance(value, tuple) else str(value)) for name, value in values
    )


def failures(evaluations: Sequence[Evaluation]) -> tuple[Failure, ...]:
    """The most frequent first."""
    failed = [each.outcome for each in evaluations if each.outcome.status is not Status.PASSED]
    first = {outcome.status: outcome.message for outcome in reversed(failed)}
    counted = sorted(
        Counter(outcome.status for outcome in failed).items(), key=lambda item: (-item[1], item[0])
    )
    return tuple(
        Failure(str(status), count, count / len(evaluations), first[status]) for status, count in counted
    )


def errors(by_regime: Any) -> tuple[RegimeError, ...]:
    if not isinstance(by_regime, dict):
        return ()
    return tuple(
        RegimeError(str(regime), _number(error.get("kernel")), _number(error.get("pytorch")))
        for regime, error in by_regime.items()
        if isinstance(error, dict)
    )


def near(pairs: Any) -> tuple[tuple[int, float], ...]:
    """Numbers of rows and the speed-up there."""
    return tuple((int(rows), float(speedup)) for rows, speedup in pairs or ())


def rest(winner: Winner, environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The rest of the certificate, in the words of `ksearch show`."""
    try:
        lines = certificate.lines(winner, environment)
    except (StoreError, *UNREADABLE) as error:
        return (("certificate", f"does not read: {error}"),)
    # The terminal's "us" is for terminals without the letter.
    return tuple(
        (name, re.sub(r"\bus\b", "µs", said)) for name, said in lines if name not in ("errors", "other rows")
    )


def interval(pair: Any) -> tuple[float, float] | None:
    """Its low and its high end."""
    numbers = _numbers(pair)
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):
        return ()
    return tuple(number for number in map(_number, values) if number is not None)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

"""How long a call takes with a cold cache, in microseconds.

One call at a time says little: clocks drift by more than the differences that matter. Final numbers
come from `race`, where everything compared runs once in every round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch

from ksearch.evaluate.confidence import half_interquartile_us
from ksearch.evaluate.messages import Timing
from ksearch.types import Target

Call: TypeAlias = Callable[[], object]

_EARLY_STOP = 1.5
"""Slower than the incumbent by this factor after three launches: more of them change nothing."""

_FEW, _LEAST, _ENOUGH, _MANY = 3, 5, 10, 50
_RELATIVE_ERROR = 0.002
"""Of the median; about what two runs of one kernel differ by."""


class Clock(Protocol):
    cap_s: float
    """When to be content with the samples there are."""

    def time(self, calls: Sequence[Call]) -> list[float]:
        """Microseconds of each call in turn, each with a cold cache."""
        ...


class CudaClock:
    """CUDA events on the current stream. The host waits once for a whole list of calls, not for each."""

    cap_s = 0.012

    def __init__(self, target: Target) -> None:
        # Zeroing this takes 60 us on an H200, in which the host gets ahead by a few launches.
        size = max(256 << 20, 2 * target.cache_bytes)
        self._flush = torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", target.index))
        self._events: list[torch.cuda.Event] = []

    def time(self, calls: Sequence[Call]) -> list[float]:
        while len(self._events) < 2 * len(calls):
            self._events.append(torch.cuda.Event(enable_timing=True))
        events = self._events[: 2 * len(calls)]
        for call, start, end in zip(calls, events[0::2], events[1::2], strict=True):
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in zip(events[0::2], events[1::2], strict=True)]


class CpuClock:
    """The steady clock of the machine; the cache is emptied by reading a large buffer."""

    cap_s = 0.25

    def __init__(self, target: Target) -> None:
        # Read, not written: large fills bypass the cache and would leave the inputs in it.
        size = min(max(64 << 20, 2 * target.cache_bytes), 128 << 20)
        self._walk = torch.zeros(size // 4, dtype=torch.float32)

    def time(self, calls: Sequence[Call]) -> list[float]:
        samples = []
        for call in calls:
            self._walk.sum()
            began = time.perf_counter_ns()
            call()
            samples.append((time.perf_counter_ns() - began) / 1e3)
        return samples


def clock(target: Target) -> Clock:
    return CudaClock(target) if target.backend == "cuda" else CpuClock(target)


def warm_up(timer: Clock, call: Call, seconds: float) -> None:
    """Keep the device at work until its clocks are where they stay under load."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        timer.time([call] * _FEW)


def measure(timer: Clock, call: Call, incumbent_us: float | None = None) -> Timing:
    """Repeat until the median is known well, or the clock's cap; stop at once if clearly slower than the
    incumbent."""
    began = time.perf_counter()
    samples = timer.time([call] * _FEW)
    if incumbent_us is None or min(samples) <= _EARLY_STOP * incumbent_us:
        while not _is_settled(samples):
            spent_s = time.perf_counter() - began
            room = int((timer.cap_s - spent_s) / spent_s * len(samples))
            if room < 1 and len(samples) >= _LEAST:
                break
            batch = _ENOUGH - len(samples) if len(samples) < _ENOUGH else _ENOUGH
            samples += timer.time([call] * min(batch, max(room, _LEAST - len(samples), 1)))
    return Timing(statistics.median(samples), half_interquartile_us(samples), len(samples))


def _is_settled(samples: Sequence[float]) -> bool:
    """Whether the standard error of the median (about 1.86 half quartile distances by the square root of
    the count, for normal noise) is small, or there are many samples."""
    if len(samples) < _ENOUGH:
        return False
    error = 1.86 * half_interquartile_us(samples) / len(samples) ** 0.5
    return len(samples) >= _MANY or error <= _RELATIVE_ERROR * statistics.median(samples)


def race(
    timer: Clock, calls: Sequence[Call], *, budget_s: float, seed: int, rounds: int = 60
) -> list[list[float]]:
    """Samples in microseconds of each call, one a round: sample i of one pairs up with sample i of another.

    The order within a round is shuffled, for none to always run after the same neighbour. Ends after
    `rounds` or the budget, but not before 3 rounds.
    """
    order = list(range(len(calls)))
    shuffle = random.Random(seed)
    samples: list[list[float]] = [[] for _ in calls]
    timer.time(calls)
    began = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and (time.perf_counter() - began) * (done + 1) / done > budget_s:
            break
        shuffle.shuffle(order)
        for index, sample_us in zip(order, timer.time([calls[i] for i in order]), strict=True):
            samples[index].append(sample_us)
    return samples

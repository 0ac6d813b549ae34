"""How long a call takes with a cold cache, in microseconds.

One call at a time says little: clocks drift by more than the differences that matter. Final numbers
come from `race`, where everything compared runs once in every round.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

_AGAIN, _MOST_FLUSHES = 2, 64
"""How often a late call is repeated, and behind how much at most: 4 ms on an H200."""


class Clock(Protocol):
    cap_s: float
    """When to be content with the samples there are."""

    def time(self, calls: Sequence[Call]) -> list[float]:
        """Microseconds of each call in turn, each with a cold cache."""
        ...


@dataclass(frozen=True)
class Shot:
    """One call on a device that works off a queue."""

    lead_us: float
    """The device was at work so long, from the flush's beginning to the call's."""
    host_us: float
    """The host took so long, from before the flush until the whole call was in the queue."""
    time_us: float
    flushes: int = 1

    @property
    def is_late(self) -> bool:
        """Whether the device may have waited for the host in the middle of what was timed. Not where the host
        took less than the device, which cannot have begun before it."""
        return self.host_us > self.lead_us


def in_time(shoot: Callable[[Sequence[Call], int], list[Shot]], calls: Sequence[Call]) -> list[float]:
    """Microseconds of each call. `shoot` takes calls, each behind so many flushes; those that the host was
    late for are taken again behind more of them."""
    shots = shoot(calls, 1)
    for _ in range(_AGAIN):
        late = [index for index, shot in enumerate(shots) if shot.is_late]
        if not late:
            break
        needed = max(2 * shots[i].flushes * shots[i].host_us / max(shots[i].lead_us, 1.0) for i in late)
        again = shoot([calls[i] for i in late], min(math.ceil(needed), _MOST_FLUSHES))
        for index, shot in zip(late, again, strict=True):
            shots[index] = shot
    return [shot.time_us for shot in shots]


class CudaClock:
    """CUDA events on the current stream. The host waits once for a whole list of calls, not for each."""

    cap_s = 0.012

    def __init__(self, target: Target) -> None:
        # Zeroing this takes 60 us on an H200, in which the host gets ahead by a few launches, if it is quick.
        # With four GPUs at work it was not: a layernorm of torch.compile (256x4096 bfloat16) came to 139 us,
        # and to 8.3 since late calls are repeated.
        size = max(256 << 20, 2 * target.cache_bytes)
        self._flush = torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", target.index))
        self._events: list[torch.cuda.Event] = []

    def time(self, calls: Sequence[Call]) -> list[float]:
        return in_time(self._shoot, calls)

    def _shoot(self, calls: Sequence[Call], flushes: int) -> list[Shot]:
        while len(self._events) < 3 * len(calls):
            self._events.append(torch.cuda.Event(enable_timing=True))
        marks = [self._events[3 * i : 3 * i + 3] for i in range(len(calls))]
        host_us = []
        for call, (ahead, start, end) in zip(calls, marks, strict=True):
            began = time.perf_counter_ns()
            ahead.record()
            for _ in range(flushes):
                self._flush.zero_()
            start.record()
            call()
            end.record()
            host_us.append((time.perf_counter_ns() - began) / 1e3)
        torch.cuda.synchronize()
        return [
            Shot(1e3 * ahead.elapsed_time(start), took_us, 1e3 * start.elapsed_time(end), flushes)
            for (ahead, start, end), took_us in zip(marks, host_us, strict=True)
        ]


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

"""How much a run may spend, what it spent on what, and the Ctrl-C that ends it early."""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Budget:
    """Trials, seconds, or both; whichever ends first. `final_s` of the seconds belong to the final."""

    def __init__(self, trials: int | None, seconds: float | None, final_s: float) -> None:
        self.trials = trials
        self.final_s = final_s if seconds is None else min(final_s, 0.15 * seconds)
        self._began = time.perf_counter()
        self._deadline = None if seconds is None else self._began + seconds - self.final_s
        self.phases_s: defaultdict[str, float] = defaultdict(float)
        """Where the time went."""

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def left_s(self, done: int) -> float | None:
        """Until the search ends: by the clock, or by the pace of the trials so far."""
        if self._deadline is not None:
            return max(0.0, self._deadline - time.perf_counter())
        if self.trials is None or not done:
            return None
        return self.elapsed_s / done * max(0, self.trials - done)

    @property
    def is_late(self) -> bool:
        """Whether the seconds of the search are spent."""
        return self._deadline is not None and time.perf_counter() >= self._deadline

    def is_over(self, done: int) -> bool:
        return self.is_late or (self.trials is not None and done >= self.trials)

    def move(self, seconds: float, source: str, destination: str) -> None:
        """Count a part of one phase as another, once its share is known."""
        self.phases_s[source] -= seconds
        self.phases_s[destination] += seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block as spent on `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases_s[name] += time.perf_counter() - began


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one raises KeyboardInterrupt as usual.

    Only the main thread hears signals; in any other the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)

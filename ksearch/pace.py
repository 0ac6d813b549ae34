"""The seconds of a study: shared out over the workloads that are left, and how long they will still take."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LEAST_S = 5.0
"""Starting a worker alone takes 2 to 5 s: a search of less finds nothing, and is left for another run."""


class Pace:
    """Counts the searches of one study, in order; `weights` are their shares of `budget_s`."""

    def __init__(self, budget_s: float | None, weights: Iterable[float]) -> None:
        self._began = self._turn_began = time.perf_counter()
        self._budget_s = budget_s
        self._weights = deque(weights)
        self._took_s: list[float] = []

    @property
    def turns(self) -> int:
        """Searches that have ended."""
        return len(self._took_s)

    @property
    def is_spent(self) -> bool:
        """Whether too little is left for one more; the first search always has its turn."""
        return self._budget_s is not None and self.turns > 0 and self._rest_s(self._budget_s) < _LEAST_S

    @property
    def left_s(self) -> float | None:
        """Until the study ends: by the searches so far, and by what may still be spent; None at first."""
        limit = None if self._budget_s is None else self._rest_s(self._budget_s)
        if not self._took_s:
            return limit
        pace_s = statistics.fmean(self._took_s)
        running_s = time.perf_counter() - self._turn_began
        guess = max(0.0, pace_s * len(self._weights) - min(running_s, pace_s))
        return guess if limit is None else min(guess, limit)

    @contextmanager
    def turn(self) -> Iterator[float | None]:
        """The time of one search; gives the seconds that it may take, None where there is no limit.

        What earlier ones left over is shared by all that follow.
        """
        self._turn_began = time.perf_counter()
        share_s = None
        if self._budget_s is not None:
            rest_s = self._rest_s(self._budget_s)
            share_s = min(rest_s, max(_LEAST_S, rest_s * self._weights[0] / sum(self._weights)))
        try:
            yield share_s
        finally:
            self._weights.popleft()
            self._took_s.append(time.perf_counter() - self._turn_began)
            self._turn_began = time.perf_counter()

    def _rest_s(self, budget_s: float) -> float:
        return max(0.0, budget_s - (time.perf_counter() - self._began))

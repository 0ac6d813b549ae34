"""The line that moves while a search runs; on stderr, so that stdout holds only the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ksearch.report import text

if TYPE_CHECKING:
    from ksearch.tuner import Progress


def line(progress: Progress) -> str:
    """`search  12/200  best 73.1 us  1.92x PyTorch  94 % of ceiling  2 wrong  0:41 left`."""
    total = "" if progress.trials_total is None else f"/{progress.trials_total}"
    parts = [progress.phase, f"{progress.trials_done}{total}"]
    best_us = progress.best_us
    if best_us:
        parts.append(f"best {text.time_us(best_us)} us")
        if progress.baseline_us:
            parts.append(f"{text.times(progress.baseline_us / best_us)} PyTorch")
        if progress.ceiling_us:
            parts.append(f"{text.percent(100 * progress.ceiling_us / best_us)} of ceiling")
    if any(progress.failures.values()):
        parts.append(f"failed: {text.counts(progress.failures)}")
    if progress.seconds_left:
        parts.append(f"{text.duration(progress.seconds_left)} left")
    return "  ".join(parts)


@contextmanager
def shown(console: Console, *, enabled: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Gives the callback for `tune(progress=)`, or None where no line is wanted or no terminal is there."""
    if not (enabled and console.is_terminal):
        yield None
        return
    spinner = Spinner("dots", text=Text("starting"))
    with Live(spinner, console=console, transient=True, refresh_per_second=8):
        yield lambda progress: spinner.update(text=Text(line(progress), overflow="ellipsis", no_wrap=True))

"""What is seen of a study while it runs: one display over all, or plain lines where nothing can move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ksearch.report import progress as one
from ksearch.report import study, text

if TYPE_CHECKING:
    from ksearch.study_run import StudyProgress

_BAR_COLUMNS = 24


@contextmanager
def shown(console: Console, name: str, *, moving: bool) -> Iterator[Callable[[StudyProgress], None]]:
    """Gives the callback for `study_run.run(progress=)`; `moving` only counts on a terminal."""
    if not (moving and console.is_terminal):
        yield lambda progress: _print_finished(console, progress)
        return
    display = _Display(name)
    with Live(display, console=console, transient=True, refresh_per_second=8):

        def update(progress: StudyProgress) -> None:
            display.progress = progress
            _print_finished(console, progress)

        yield update


def _print_finished(console: Console, progress: StudyProgress) -> None:
    if progress.finished is not None:
        place = f"{progress.done:{len(str(progress.total))}}/{progress.total}"
        console.print(Text(f"{place}  {study.line(progress.finished)}"), soft_wrap=True)


class _Display:
    """The bar over the whole study, and below it the line of the search that runs."""

    def __init__(self, name: str) -> None:
        self.progress: StudyProgress | None = None
        self._name = name
        self._began = time.perf_counter()
        self._spinner = Spinner("dots")

    def __rich__(self) -> Table:
        """Asked for at each refresh, so that the clock goes on between two candidates."""
        grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
        grid.add_column(ratio=1, no_wrap=True)
        grid.add_row(self._overall())
        self._spinner.update(text=Text(self._current(), overflow="ellipsis", no_wrap=True))
        grid.add_row(self._spinner)
        return grid

    def _overall(self) -> Table:
        progress = self.progress
        parts = [text.duration(time.perf_counter() - self._began)]
        if progress is not None and progress.left_s is not None:
            parts.append(f"about {text.duration(progress.left_s)} left")
        done, total = (progress.done, progress.total) if progress is not None else (0, 1)
        count = f"{done}/{total}" if progress is not None else "reading"
        grid = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=total, completed=done, width=_BAR_COLUMNS)
        grid.add_row(Text(f"study {self._name}"), bar, Text("  ".join([count, *parts])))
        return grid

    def _current(self) -> str:
        progress = self.progress
        if progress is None:
            return "looking up what is known"
        if progress.entry is None:
            return ""
        step = "start" if progress.search is None else one.line(progress.search)
        return f"{progress.entry}  {step}"

"""`ksearch tune --study FILE`: many workloads in one run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ksearch.cli.printing import console, print_json, print_rich

if TYPE_CHECKING:
    from ksearch.study_run import StudyProgress
    from ksearch.tuner import Report

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def tune_study(
    text: str,
    *,
    search: Callable[..., Report],
    quiet: bool,
    no_progress: bool,
    as_json: bool,
    **asked: Any,
) -> int:
    """Run the study that `text` names and print what became of it; `asked` goes to `study_run.run`.

    Gives the exit status. Raises what `study_file.read` and `study_run.run` raise.
    """
    from ksearch import study, study_file, study_run
    from ksearch.report import rows, study_progress, tables
    from ksearch.report import study as wording

    found = study_file.read(study.find(text))
    display: AbstractContextManager[Callable[[StudyProgress], None] | None] = nullcontext()
    if not (as_json or quiet):
        display = study_progress.shown(console(stderr=True), found.name, moving=not no_progress)
    with display as callback:
        report = study_run.run(found, search=search, progress=callback, **asked)
    if as_json:
        print_json(rows.study_row(report))
    elif quiet:
        print("\n".join(wording.line(result) for result in report.results))
    else:
        print_rich(tables.study(report))
        print("\n".join(["", *wording.troubles(report), wording.footer(report)]))
    if report.is_complete:
        return 0
    return INTERRUPTED if report.interrupted else 1

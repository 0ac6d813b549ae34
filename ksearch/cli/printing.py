"""How a command writes: stdout holds the result and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def console(*, stderr: bool = False) -> Console:
    # rich takes 60 ms to import, which `--help` need not pay
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_rich(renderable: RenderableType) -> None:
    """Colour and folding for a terminal; neither for a pipe or a file, which may be searched by line."""
    out = console()
    if out.is_terminal:
        out.print(renderable)
        return
    out.width = 10_000
    with out.capture() as captured:
        out.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_json(value: Any) -> None:
    from ksearch.report.rows import to_json

    print(to_json(value))

"""`ksearch launcher`: compile what calls kernels without Python in between."""

from __future__ import annotations

from pathlib import Path

import click

from ksearch.cli.parameters import json_flag
from ksearch.cli.printing import print_json


@click.command("launcher")
@click.option(
    "-o",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to put it, for other machines.",
)
@json_flag
def launcher(output: Path | None, as_json: bool) -> None:
    """Compile what calls kernels without Python in between.

    A call then costs less than one of PyTorch. It needs a C++ compiler, takes some 10 s, and fits this
    version of Python and of PyTorch alone. Without -o it is found by itself; elsewhere KSEARCH_LAUNCHER names
    its file. Nothing needs it.
    """
    from ksearch.runtime import launcher as building  # imports torch

    path = (output or building.default_path()).absolute()
    building.build(path)
    if as_json:
        print_json({"launcher": str(path)})
    elif output is None:
        print(f"{path}: calls of kernels go through it from now on")
    else:
        print(f"{path}: set KSEARCH_LAUNCHER to where it will lie")

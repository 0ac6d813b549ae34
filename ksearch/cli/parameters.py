"""What the commands share of their arguments: texts that become values, and common options."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Seconds from `60s`, `5m`, `1h` or plain `90`. Raises click.BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a time: write 60s, 5m, 1h or 90 (seconds)")
    return float(found[1]) * _SECONDS[found[2]]


def name_value(text: str) -> tuple[str, str]:
    """`name=value`; what type the value has is for the op to say. Raises click.BadParameter."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise click.BadParameter(f"{text!r} is not name=value")
    return name, value


json_flag = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there."
)
shape_help = "Shape of the op's first input: 4096x8192; of a linear layer BATCHxINxOUT."
db_option = click.option(
    "--db",
    type=click.Path(path_type=Path, resolve_path=True),
    help="Database file.  [default: KSEARCH_DB, or the user's data folder]",
)
options_option = click.option(
    "--option",
    "options",
    type=name_value,
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the op; repeatable.",
)


policy_help = "Of a linear layer in float32: strict, or tf32."


def of_one_workload(command: _Command) -> _Command:
    """`OP --shape ...`, narrowed by `--dtype`, `--policy`, `--option`, `--device` where several are there."""
    for decorate in (
        click.option("--device", help="cpu, cuda, or part of a device's name.  [default: any]"),
        options_option,
        click.option("--policy", help=f"{policy_help}  [default: any]"),
        click.option("--dtype", help="float32, float16 or bfloat16.  [default: any]"),
        click.option("--shape", required=True, metavar="NxM", help=shape_help),
        click.argument("op"),
    ):
        command = decorate(command)
    return command

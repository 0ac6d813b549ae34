"""What the commands share of their arguments: texts that become values, and common options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from ksearch.cli import complete

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_AGES = {**_SECONDS, "d": 86400.0, "w": 7 * 86400.0}


def seconds(text: str) -> float:
    """Seconds from `60s`, `5m`, `1h` or plain `90`. Raises click.BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a time: write 60s, 5m, 1h or 90 (seconds)")
    return float(found[1]) * _SECONDS[found[2]]


def since(text: str) -> str:
    """The time from which on, UTC, ISO 8601, of an age (`7d`, `12h`) or a date. Raises click.BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    try:
        if found is None:
            day = date.fromisoformat(text.strip())
            at = datetime(day.year, day.month, day.day, tzinfo=UTC)
        else:
            at = datetime.now(UTC) - timedelta(seconds=float(found[1]) * _AGES[found[2]])
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no age: write 7d, 12h, 30m, 2w, or a date such as 2026-11-01"
        ) from None
    return at.isoformat(timespec="seconds").removesuffix("+00:00")


def one_of(words: Callable[[], Iterable[str]]) -> dict[str, Any]:
    """Of an option that is one of some words; these are asked for when needed, so that `--help` is fast."""

    def parse(text: str) -> str:
        known = list(words())
        if text not in known:
            raise click.BadParameter(f"{text!r} is not one of {', '.join(map(repr, known))}")
        return text

    def offer(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        return [word for word in words() if word.startswith(incomplete)]

    return {"type": parse, "shell_complete": offer}


def _dtypes() -> Iterable[str]:
    from ksearch.types import ITEMSIZE  # with dataclasses and json: 20 ms

    return ITEMSIZE


def _policies() -> Iterable[str]:
    from ksearch.types import POLICIES

    return POLICIES


def name_value(text: str) -> tuple[str, str]:
    """`name=value`; what type the value has is for the op to say. Raises click.BadParameter."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise click.BadParameter(f"{text!r} is not name=value")
    return name, value


json_flag = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there."
)
dtype = one_of(_dtypes)
_policy = one_of(_policies)
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
prepacked_help = "Of a linear layer: its weight is a constant, packed once, before anything is timed."
prepacked_option = click.option(
    "--prepacked/--plain",
    "prepacked",
    default=None,
    help="Only what takes a packed weight, or only what takes it as it is.  [default: any]",
)
_dtype_help = "float32, float16 or bfloat16."
_device_help = "cpu, cuda, or part of a device's name.  [default: any]"


def _all_of(*decorators: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """One decorator, which adds what they add, in that order."""

    def decorate(command: _Command) -> _Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


tabular = _all_of(
    click.option("--json", "form", flag_value="json", help="Print JSON on stdout, and nothing else there."),
    click.option("--csv", "form", flag_value="csv", help="Print comma-separated values."),
)
"""For a command that prints a table; `form` is None where it is to be one."""

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=0),
    help="Rows at most; 0 for all.  [default: 50 in a table, all as JSON or CSV]",
)
since_option = click.option(
    "--since", type=since, metavar="AGE", help="Only what is as young as 7d, 12h, 2w, or from that date on."
)
narrowing = _all_of(
    click.option("--op", shell_complete=complete.ops_found, help="Only this op."),
    click.option("--dtype", **dtype, metavar="DTYPE", help="Only this dtype."),
    click.option("--device", shell_complete=complete.devices, help=_device_help),
    since_option,
    click.option(
        "--status",
        type=click.Choice(["winner", "baseline"]),
        help="Only kernels that won, or only where PyTorch did.",
    ),
)
"""Which winners of a database."""

of_one_workload = _all_of(
    click.argument("op", shell_complete=complete.ops_found),
    click.option("--shape", required=True, metavar="NxM", shell_complete=complete.shapes, help=shape_help),
    click.option("--dtype", **dtype, metavar="DTYPE", help=f"{_dtype_help}  [default: any]"),
    click.option("--policy", **_policy, metavar="POLICY", help=f"{policy_help}  [default: any]"),
    prepacked_option,
    options_option,
    click.option("--device", shell_complete=complete.devices, help=_device_help),
)
"""`OP --shape ...`, narrowed by `--dtype`, `--policy`, `--option`, `--device` where several are there."""

of_several_workloads = _all_of(
    click.argument("op", shell_complete=complete.ops_found),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        required=True,
        metavar="NxM",
        shell_complete=complete.shapes,
        help=f"{shape_help} Repeatable.",
    ),
    click.option(
        "--dtype",
        "dtypes",
        multiple=True,
        **dtype,
        metavar="DTYPE",
        help=f"{_dtype_help} Repeatable.  [default: any]",
    ),
    click.option(
        "--policy",
        "policies",
        multiple=True,
        **_policy,
        metavar="POLICY",
        help=f"{policy_help} Repeatable.  [default: any]",
    ),
    prepacked_option,
    options_option,
    click.option(
        "--device",
        "devices",
        multiple=True,
        shell_complete=complete.devices,
        help=f"{_device_help} Repeatable.",
    ),
)
"""The same, where what is stated several times is for the first workload, the second, and so on."""

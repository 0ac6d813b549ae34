"""How numbers and configs are written for people: the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from ksearch.launch import Launch
from ksearch.types import Config


def time_us(value: float | None) -> str:
    """Three or more significant digits; `-` where there is no time."""
    if value is None or not math.isfinite(value):
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None or not math.isfinite(ratio) else f"{ratio:.2f}x"


def percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.0f} %"


def duration(seconds: float) -> str:
    """`48.3 s` below a minute, else `12:05` or `1:02:05`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: int) -> str:
    """`22.4 MB`; below one, `16.0 KB`. Both are decimal."""
    return f"{count / 1e6:,.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} KB"


def many(count: int, noun: str) -> str:
    """`1 winner`, `2 winners`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def age(created: str, now: datetime) -> str:
    """`5 min`, `3 h` or `12 d` before `now`; `-` where it is not known."""
    try:
        at = datetime.fromisoformat(created)
    except ValueError:
        return "-"
    minutes = max(0.0, (now - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds() / 60)
    if minutes < 60:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / (24 * 60):.0f} d"


def config(values: Config | None) -> str:
    """`block=256 vector=4`; PyTorch where there is none."""
    if values is None:
        return "PyTorch"
    return " ".join(f"{name}={value}" for name, value in values.items())


def counts(failures: Mapping[str, int]) -> str:
    """`2 wrong, 1 timeout`, most frequent first."""
    ordered = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {status}" for status, n in ordered if n)


def launch_values(launch: Launch) -> dict[str, Any]:
    """Only what differs from the defaults: a CPU kernel has no blocks to speak of."""
    values = ((field.name, getattr(launch, field.name), field.default) for field in fields(launch))
    return {name: value for name, value, default in values if value != default}


def launch(values: Launch) -> str:
    """`block=256 cluster=8`."""
    return " ".join(f"{name}={value}" for name, value in launch_values(values).items()) or "default"

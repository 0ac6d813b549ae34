"""A short entry for each workload and device of the database, made of the store's short rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ksearch.store.listing import Listed
from ksearch.types import Target, Workload, digest


@dataclass(slots=True, eq=False)
class Entry:
    """One workload on one device."""

    identity: str
    """The last letters of its address."""
    workload_key: str
    target: Target
    op: str
    dims: tuple[int, ...]
    dtype: str
    device: str
    elements: int
    words: str
    """What a search looks into, in lower case."""
    result: str = "none"
    """`kernel`, `pytorch` where PyTorch won, or `none` where there is no winner."""
    number: int = 0
    """Of the winner's row; 0 without one, as are its figures."""
    time_us: float = 0.0
    baseline_us: float = 0.0
    speedup: float = 0.0
    percent_of_ceiling: float = 0.0
    created: str = ""

    FIGURES = ("result", "number", "time_us", "baseline_us", "speedup", "percent_of_ceiling", "created")
    """What a later winner changes."""


def identity(workload_key: str, target: Target) -> str:
    """What `pages.views.slug` ends in."""
    return digest(workload_key + target.key)[:16]


def of_winner(winner: Listed, target: Target) -> Entry:
    return _entry(
        winner,
        winner.workload_key,
        target,
        result="kernel" if winner.is_kernel else "pytorch",
        number=winner.number,
        time_us=winner.time_us,
        baseline_us=winner.baseline_us,
        speedup=winner.baseline_us / winner.time_us,
        percent_of_ceiling=100 * winner.ceiling_us / winner.time_us,
        created=winner.created,
    )


def of_search(workload: Workload, target: Target) -> Entry:
    """Of a workload without a winner."""
    return _entry(workload, workload.key, target)


def _entry(named: Listed | Workload, workload_key: str, target: Target, **figures: Any) -> Entry:
    return Entry(
        identity=identity(workload_key, target),
        workload_key=workload_key,
        target=target,
        op=named.op,
        dims=named.dims,
        dtype=named.dtype,
        device=target.device,
        elements=math.prod(named.dims),
        words=_words(named, target),
        **figures,
    )


def _words(named: Listed | Workload, target: Target) -> str:
    options = " ".join(f"{name}={value}" for name, value in named.options)
    shape = "x".join(map(str, named.dims))
    return (
        f"{named.op} {shape} {named.dtype} {named.mode} {options} "
        f"{target.device} {target.backend} {target.arch}"
    ).lower()

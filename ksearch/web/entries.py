"""A short entry for each workload and device of the database, made of the store's short rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ksearch.store.listing import Listed
from ksearch.types import Option, Target, Workload, digest


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
    result: str
    """`kernel`, `pytorch` where PyTorch won, or `none` where there is no winner."""
    number: int
    """Of the winner's row; 0 without one, as are its figures."""
    time_us: float
    baseline_us: float
    speedup: float
    percent_of_ceiling: float
    created: str
    elements: int
    words: str
    """What a search looks into, in lower case."""

    FIGURES = ("result", "number", "time_us", "baseline_us", "speedup", "percent_of_ceiling", "created")
    """What a later winner changes."""


def identity(workload_key: str, target: Target) -> str:
    """What `pages.views.slug` ends in."""
    return digest(workload_key + target.key)[:16]


def of_winner(winner: Listed, target: Target) -> Entry:
    return Entry(
        identity=identity(winner.workload_key, target),
        workload_key=winner.workload_key,
        target=target,
        op=winner.op,
        dims=winner.dims,
        dtype=winner.dtype,
        device=target.device,
        result="kernel" if winner.is_kernel else "pytorch",
        number=winner.number,
        time_us=winner.time_us,
        baseline_us=winner.baseline_us,
        speedup=winner.baseline_us / winner.time_us,
        percent_of_ceiling=100 * winner.ceiling_us / winner.time_us,
        created=winner.created,
        elements=math.prod(winner.dims),
        words=_words(winner.op, winner.dims, winner.dtype, winner.policy, winner.options, target),
    )


def of_search(name: str, workload: Workload, target: Target) -> Entry:
    facts = (workload.op, workload.dims, workload.dtype, workload.policy, workload.options, target)
    return Entry(
        identity=name,
        workload_key=workload.key,
        target=target,
        op=workload.op,
        dims=workload.dims,
        dtype=workload.dtype,
        device=target.device,
        result="none",
        number=0,
        time_us=0.0,
        baseline_us=0.0,
        speedup=0.0,
        percent_of_ceiling=0.0,
        created="",
        elements=math.prod(workload.dims),
        words=_words(*facts),
    )


def _words(
    op: str,
    dims: tuple[int, ...],
    dtype: str,
    policy: str,
    options: Iterable[tuple[str, Option]],
    target: Target,
) -> str:
    named = " ".join(f"{name}={value}" for name, value in options)
    shape = "x".join(map(str, dims))
    return f"{op} {shape} {dtype} {policy} {named} {target.device} {target.backend} {target.arch}".lower()

"""Which winners a command means by an op, a shape and what else was said; or what there is instead."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ksearch.errors import UsageError

if TYPE_CHECKING:
    from ksearch.store import Store
    from ksearch.store.narrowed import Filter, Searched
    from ksearch.types import Target, Winner, Workload

# Imports inside the functions: SQLAlchemy takes 0.2 s, which `--help` need not pay.

_Options = Iterable[tuple[str, str]]
_SHOWN = 8
"""Of what there is instead, at most."""
_LOOKED_AT = 200
"""Winners of about the size that was asked for, among which the shape decides."""


def kept_as(op: str) -> str:
    """The name under which the database has the op: of my_ops.py:swish it is swish."""
    from ksearch.operators import canonical

    _, file_stated, name = op.rpartition(":")
    return name if file_stated else canonical(op)


def chosen(
    store: Store,
    op: str | None,
    shape: str | None,
    dtype: str | None,
    policy: str | None,
    options: _Options,
    device: str | None,
    prepacked: bool | None = None,
) -> list[Winner]:
    """The winners of one op and shape, or of all, on every target in the database.

    Raises UsageError where there is none.
    """
    from ksearch.store import narrowed

    asked = _filter(op, shape, dtype, policy, device, prepacked)
    found = [winner for winner in narrowed.whole(store, asked) if _has_options(winner.workload, options)]
    if not found:
        raise _nothing(store, op, shape, asked, options, "winner")
    return found


def searches(
    store: Store,
    op: str,
    shape: str,
    dtype: str | None,
    policy: str | None,
    options: _Options,
    device: str | None,
    prepacked: bool | None = None,
) -> list[Searched]:
    """What has candidates of one op and shape, or else a winner that came without any. Raises UsageError."""
    from ksearch.store import narrowed

    asked = _filter(op, shape, dtype, policy, device, prepacked)
    searched = narrowed.searched(store, asked)
    if not searched:  # a bundle brings winners alone
        places = narrowed.places(store, asked, None, _LOOKED_AT)
        searched = [narrowed.Searched(*place, {}) for place in places]
    found = [each for each in searched if _has_options(each.workload, options)]
    if not found:
        raise _nothing(store, op, shape, asked, options, "candidate")
    return found


def _filter(
    op: str | None,
    shape: str | None,
    dtype: str | None,
    policy: str | None,
    device: str | None,
    prepacked: bool | None,
) -> Filter:
    from ksearch.operators import parse_shape
    from ksearch.store.narrowed import Filter

    return Filter(
        op=None if op is None else kept_as(op),
        dims=None if shape is None else parse_shape(shape),
        dtype=dtype,
        policy=policy,
        prepacked=prepacked,
        device=device,
    )


def _has_options(workload: Workload, asked: _Options) -> bool:
    """Each text is read as the type that the workload's own value has: `0.50` is 0.5."""
    from ksearch.operators.signature import parse_option

    known = dict(workload.options)
    return all(
        name in known and parse_option(workload.op, name, text, known[name]) == known[name]
        for name, text in asked
    )


def _nothing(
    store: Store, op: str | None, shape: str | None, asked: Filter, options: _Options, what: str
) -> UsageError:
    """No `what` is there: what is there that comes nearest, and how to get it."""
    from ksearch.store import narrowed

    stated = [f"{name}={value}" for name, value in options]
    mode = None if asked.prepacked is None else "prepacked" if asked.prepacked else "plain"
    words = (op, shape, asked.dtype, asked.policy, mode, *stated, asked.device and f"on {asked.device}")
    text = f"no {what} for {' '.join(word for word in words if word) or 'any op'} in {store.path}"
    if other := other_names(store, asked.op):
        return UsageError(f"{text}; {other}")
    if what == "winner":
        text += _begun(store, asked)
    if nearest := _nearest(store, asked):
        more = narrowed.count(store, narrowed.Filter(op=asked.op)) - len(nearest)
        text += f"; it has {_by_device(nearest)}" + (f" and {more:,} more" if more > 0 else "")
    return UsageError(f"{text}; to get one: ksearch tune {op or 'OP'} --shape {shape or 'NxM'}")


def other_names(store: Store, op: str | None) -> str:
    """Which op may be meant where there is none of that name, neither here nor built in; else nothing."""
    import difflib

    from ksearch import operators
    from ksearch.store import narrowed

    known = narrowed.ops(store)
    if op is None or op in known or op in operators.names():
        return ""
    near = difflib.get_close_matches(op, {*known, *operators.names()}, n=3, cutoff=0.5)
    if near:
        return f"there is no op {op}: did you mean {' or '.join(near)}?"
    return f"there is no op {op}" + (f"; the database has {', '.join(known)}" if known else "")


def _begun(store: Store, asked: Filter) -> str:
    """That there are candidates, and what they came to."""
    from ksearch.report import text
    from ksearch.store import narrowed

    if asked.op is None or asked.dims is None:
        return ""
    parts = [
        f"; {sum(each.counts.values())} candidates of {each.workload} were evaluated on {each.target.device} "
        f"({text.counts(each.counts)}; ksearch trials shows them), and the same ksearch tune goes on"
        for each in narrowed.searched(store, asked)
    ]
    return "".join(parts[:_SHOWN])


def _nearest(store: Store, asked: Filter) -> list[tuple[Workload, Target]]:
    """Winners of the same op, or of any, those of the nearest shape first."""
    from ksearch.store import narrowed

    def distance(workload: Workload) -> tuple[Any, ...]:
        dims = asked.dims or workload.dims
        if len(dims) != len(workload.dims):
            return (math.inf, str(workload))
        apart = sum(abs(math.log(one / other)) for one, other in zip(dims, workload.dims, strict=True))
        return (apart, str(workload))

    of_op = narrowed.Filter(op=asked.op)
    places = narrowed.places(store, of_op, asked.dims, _LOOKED_AT)
    places.sort(key=lambda place: distance(place[0]))
    return places[:_SHOWN]


def _by_device(places: Iterable[tuple[Workload, Target]]) -> str:
    """`softmax 4x8 float32, softmax 8 float32 on NVIDIA H200; ...`: the name of a device may have a comma."""
    found: dict[str, list[str]] = {}
    for workload, target in places:
        found.setdefault(target.device, []).append(str(workload))
    return "; ".join(f"{', '.join(workloads)} on {device}" for device, workloads in found.items())

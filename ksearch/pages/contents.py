"""What a report holds: the winners that were asked for and the searches without one, read from the store."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ksearch.errors import UsageError
from ksearch.pages import roof, views
from ksearch.store import Store, narrowed
from ksearch.store.narrowed import Filter
from ksearch.types import Target, Winner, Workload

MOST = 500
"""Workloads in one report, of some 130 KB each: a browser still opens such a file at once."""

Place = tuple[Workload, Target]


@dataclass(frozen=True, slots=True)
class Contents:
    """`views` reads one workload after the other from the open store."""

    store: Store
    overview: views.Overview
    winners: tuple[Winner, ...]
    without: tuple[Place, ...]
    """What was searched and has no winner."""
    default_db: str

    def views(self) -> Iterator[views.WorkloadView]:
        """In the order of the overview's rows."""
        of_winners = ((each.workload, each.target, each) for each in self.winners)
        of_searches = ((*place, None) for place in self.without)
        for workload, target, winner in (*of_winners, *of_searches):
            stored = self.store.artifact(winner.artifact) if winner and winner.artifact else None
            yield views.workload_view(
                workload,
                target,
                winner,
                self.store.evaluations(workload, target),
                href=href(workload, target),
                environment=self.store.environment(workload, target),
                source=stored.source if stored else None,
                db=str(self.store.path),
                default_db=self.default_db,
            )

    def places(self) -> tuple[roof.Place, ...]:
        """Of the winners whose work is known."""
        return roof.places(self.winners)


def href(workload: Workload, target: Target) -> str:
    """Where a report has its part about them."""
    return f"#{views.slug(workload, target)}"


def read(store: Store, asked: Filter, *, default_db: str = "") -> Contents:
    """All that fits, by name.

    Raises UsageError for more than MOST workloads, and where nothing fits a filter that asks for anything.
    """
    count = narrowed.count(store, asked)
    without = _without(store, asked) if count <= MOST else []
    if count + len(without) > MOST:
        raise UsageError(
            f"{store.path} has {count + len(without):,} such workloads, and a report holds {MOST}: narrow "
            "them with --op, --dtype, --device, --since or --status, or look at them with `ksearch browse`"
        )
    if not count and not without and asked != Filter():
        raise UsageError(f"nothing in {store.path} fits {_stated(asked)}{_known(store, asked)}")
    winners = tuple(narrowed.whole(store, asked))
    searches = [views.search(*place, store.evaluations(*place)) for place in without]
    title = f"{store.path.name}: {_stated(asked)}" if asked != Filter() else store.path.name
    return Contents(
        store, views.overview(winners, searches, title, href), winners, tuple(without), default_db
    )


def _without(store: Store, asked: Filter) -> list[Place]:
    """What was searched and has no winner; none where the filter is about winners."""
    if asked.status is not None:
        return []
    found = ((each.workload, each.target) for each in narrowed.searched(store, asked))
    left = [place for place in found if store.find(*place) is None]
    if asked.since is None:
        return left
    return [place for place in left if store.evaluations(*place)[-1].created >= asked.since]


def _stated(asked: Filter) -> str:
    """`op softmax, since 2026-11-01`."""
    return ", ".join(f"{name} {value}" for name, value in asdict(asked).items() if value is not None)


def _known(store: Store, asked: Filter) -> str:
    """What there is instead of an op that has no results; of a name that is mistyped the nearest."""
    known = narrowed.ops(store)
    if asked.op is None or asked.op in known:
        return ""
    near = difflib.get_close_matches(asked.op, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; it has {', '.join(known)}" if known else "; nothing was tuned there yet"

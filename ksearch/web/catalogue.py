"""What lists are made of, kept in memory: one short entry for each workload and device of the database.

To filter and sort 100,000 winners takes some 50 ms here. In SQL, joining them with their workloads alone
takes 0.3 s, and each order needs an index.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ksearch.store import Store
from ksearch.store.listing import Listed, Listing, Tried
from ksearch.types import Target, Workload
from ksearch.web.entries import Entry, identity, of_search, of_winner
from ksearch.web.found import Found, Sums, summed
from ksearch.web.orders import Orders
from ksearch.web.query import FACETS, Query

_RUNNING_S = 120.0
"""A search that recorded nothing for as long does not run; compiling one candidate may take a minute."""
_LATEST = 32
"""Searches that are asked whether they run."""
_KEPT = 8
"""Results of queries that are kept until something changes: for the other pages of the same list."""


@dataclass(frozen=True, slots=True)
class Running:
    """A search that goes on, or went on a moment ago."""

    entry: Entry
    study: str
    target_id: int


class Catalogue:
    """The entries of an open store; threads may share it."""

    def __init__(self, store: Store) -> None:
        """Raises StoreError."""
        self.listing = Listing(store)
        self._lock = threading.Lock()
        self._targets: dict[int, Target] = {}
        self._entries: dict[str, Entry] = {}
        self._orders = Orders(())
        self._sums = Sums()
        self._latest: OrderedDict[tuple[str, int, str], int] = OrderedDict()
        """Searches and the row of their latest candidate, the latest last."""
        self._last_winner = self._last_trial = 0
        self._found: OrderedDict[Query, Found] = OrderedDict()
        self._facets: dict[str, list[str]] = {}

    def close(self) -> None:
        self.listing.close()

    def refresh(self) -> None:
        """Take in what was committed since. Raises StoreError."""
        with self._lock:
            if not self.listing.is_changed():
                return
            if not self._entries:
                self._read_all()
                return
            self._read_new()
            known = self._sums.won, self._sums.numbers
            if known != self.listing.check():  # a merge brought an older winner back
                self._read_all()

    def latest(self) -> Entry | None:
        """The one that was searched last."""
        with self._lock:
            for key, target_id, _ in reversed(self._latest):
                return self._entries.get(identity(key, self._targets[target_id]))
        return None

    def find(self, query: Query) -> Found:
        """Every entry that the query asks for; `query.page` does not count."""
        query = query.at(1)
        with self._lock:
            found = self._found.get(query)
            if found is None:
                found = self._found[query] = self._find(query)
                if len(self._found) > _KEPT:
                    self._found.popitem(last=False)
            return found

    def entry(self, name: str) -> Entry | None:
        """By its slug, or the identity that ends it."""
        return self._entries.get(name[-16:])

    def values(self, facet: str) -> list[str]:
        """What a filter of that name offers."""
        with self._lock:
            return self._values(facet)

    def running(self) -> list[Running]:
        """Searches that recorded a candidate within two minutes, the latest first."""
        with self._lock:
            latest = list(reversed(self._latest.items()))
        times = self.listing.recorded([number for _, number in latest])
        now, found = datetime.now(UTC), []
        for (key, target_id, study), number in latest:
            entry = self._entries.get(identity(key, self._targets[target_id]))
            at = _time(times.get(number, ""))
            if entry is None or at is None or now - at > timedelta(seconds=_RUNNING_S):
                continue
            ended = _time(entry.created) if entry.number else None
            if ended is None or at - ended > timedelta(seconds=1):  # a winner's time has no fraction
                found.append(Running(entry, study, target_id))
        return found

    def workload(self, entry: Entry) -> Workload:
        found = self.listing.workload(entry.workload_key)
        assert found is not None  # rows of workloads are never deleted
        return found

    def _read_all(self) -> None:
        self._targets = self.listing.targets()
        self._entries, self._sums = {}, Sums()
        self._last_winner = self._last_trial = 0
        self._latest.clear()
        searches = self.listing.searches()
        self._add_winners(self.listing.winners())
        self._add_searches(searches)
        self._orders = Orders(self._entries.values())
        for tried in heapq.nlargest(_LATEST, searches, key=lambda each: each.last)[::-1]:
            self._latest[tried.workload_key, tried.target_id, tried.study] = tried.last
        self._found.clear()
        self._facets.clear()

    def _read_new(self) -> None:
        winners, tried = self.listing.winners(self._last_winner), self.listing.tried(self._last_trial)
        if not (winners or tried):
            return
        seen = {each.target_id for each in winners} | {each.target_id for each in tried}
        if not seen <= self._targets.keys():
            self._targets = self.listing.targets()
        added = [*self._add_winners(winners), *self._add_searches(tried)]
        for entry in added:
            self._orders.add(entry)
        for each in tried:
            place = each.workload_key, each.target_id, each.study
            self._latest[place] = each.last
            self._latest.move_to_end(place)
        while len(self._latest) > _LATEST:
            self._latest.popitem(last=False)
        if winners or added:
            self._found.clear()
        if added:
            self._facets.clear()

    def _add_winners(self, winners: list[Listed]) -> list[Entry]:
        """Gives the entries that are new; of the others it changes the figures."""
        added = []
        for winner in winners:
            entry = of_winner(winner, self._targets[winner.target_id])
            known = self._entries.setdefault(entry.identity, entry)
            if known is entry:
                added.append(entry)
            else:
                self._sums.count(known, -1)
                self._orders.change(known, entry)
            self._sums.count(known, 1)
            self._last_winner = max(self._last_winner, winner.number)
        return added

    def _add_searches(self, searches: list[Tried]) -> list[Entry]:
        """Gives the entries that are new: those without a winner are entries, too."""
        fresh: dict[str, Tried] = {}
        for tried in searches:
            self._last_trial = max(self._last_trial, tried.last)
            name = identity(tried.workload_key, self._targets[tried.target_id])
            if name not in self._entries:
                fresh[name] = tried
        workloads = self.listing.workloads([tried.workload_key for tried in fresh.values()])
        for name, tried in fresh.items():
            self._entries[name] = of_search(workloads[tried.workload_key], self._targets[tried.target_id])
        return [self._entries[name] for name in fresh]

    def _values(self, facet: str) -> list[str]:
        if facet not in self._facets:
            self._facets[facet] = sorted({getattr(entry, facet) for entry in self._entries.values()})
        return self._facets[facet]

    def _find(self, query: Query) -> Found:
        entries = self._orders.get(query.sort)
        if not query.is_narrowed:
            by_ceiling = self._orders.get("percent_of_ceiling")
            return self._sums.found(entries, by_ceiling, self._values("device"))
        for facet in FACETS:
            if wanted := getattr(query, facet):
                entries = [entry for entry in entries if getattr(entry, facet) == wanted]
        for word in query.q.lower().split():
            entries = [entry for entry in entries if word in entry.words]
        return summed(entries)


def _time(text: str) -> datetime | None:
    """None where it is not one; without an offset it is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)

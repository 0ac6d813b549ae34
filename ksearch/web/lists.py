"""The list of winners, of which a page at a time is read in full, and what runs above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from ksearch.pages import template, views
from ksearch.store.listing import Standing
from ksearch.types import Target, Workload
from ksearch.web.answers import opened, page, tagged
from ksearch.web.catalogue import Running
from ksearch.web.entries import Entry
from ksearch.web.found import ROWS
from ksearch.web.query import Query
from ksearch.web.site import Opened

Link = Callable[[Workload, Target], str]

MOST_BUNDLED = 1000
"""Winners of a list that are offered as one bundle: it takes a second to write."""


@dataclass(frozen=True, slots=True)
class Run:
    """A search that runs, as the list shows it."""

    href: str
    workload: Workload
    device: str
    standing: Standing


def winners(request: Request) -> Response:
    """`/`: all of the database."""
    found, query = opened(request), Query.read(request.query_params)
    return answer(request, found, query, "list.html.j2", link=link)


def link(workload: Workload, target: Target) -> str:
    """Where the page of a workload is."""
    return f"/w/{views.slug(workload, target)}"


def answer(
    request: Request, found: Opened, query: Query, name: str, *, link: Link, chosen: Sequence[str] = ()
) -> Response:
    """The list as a page, or what of it changes. `chosen` stays in its addresses."""
    path = request.url.path
    fixed = [("w", each) for each in chosen]

    def address(asked: Query) -> str:
        text = urlencode([*fixed, *asked.items])
        return f"{path}?{text}" if text else path

    catalogue = found.catalogue
    listed = catalogue.find(query)
    part = template.fragment(
        "list_part.html.j2",
        query=query,
        everything=Query(sort=query.sort),
        found=listed,
        first=(query.page - 1) * ROWS + 1,
        rows=rows(found, listed.page(query.page), link),
        running=[] if chosen else [_run(found, each) for each in catalogue.running()],
        address=address,
        bundle=_bundle(query) if 0 < len(listed.rows) <= MOST_BUNDLED else "",
        chosen=chosen,
    )
    if "part" in request.query_params:
        return tagged(request, part)
    values: dict[str, Any] = {
        "query": query,
        "facets": {name: catalogue.values(name) for name in ("op", "dtype", "device")},
        "live": urlencode([*fixed, *query.items, ("part", "1")]),
        "chosen": chosen,
        "part": part,
    }
    return page(request, name, **values)


def rows(found: Opened, entries: Sequence[Entry], link: Link) -> list[views.WinnerRow]:
    """In the order of `entries`."""
    listing = found.catalogue.listing
    full = listing.full([entry.number for entry in entries if entry.number])
    workloads = listing.workloads([entry.workload_key for entry in entries if not entry.number])
    shown = []
    for entry in entries:
        if winner := full.get(entry.number):
            shown.append(views.winner_row(winner, link(winner.workload, winner.target)))
        elif workload := workloads.get(entry.workload_key):
            standing = listing.standing(entry.workload_key, entry.target.key)
            facts = (standing.trials, standing.passed, standing.best_us, standing.updated)
            search = views.Search(workload, entry.target, *facts)
            shown.append(views.search_row(search, link(workload, entry.target)))
    return shown


def _bundle(query: Query) -> str:
    text = urlencode(query.at(1).items)
    return f"/winners.ksb?{text}" if text else "/winners.ksb"


def _run(found: Opened, running: Running) -> Run:
    entry = running.entry
    workload = found.catalogue.workload(entry)
    standing = found.catalogue.listing.standing(entry.workload_key, entry.target.key)
    return Run(link(workload, entry.target), workload, entry.device, standing)

"""The page of one workload, the part of it that changes, and its figures as JSON."""

from __future__ import annotations

import functools
import json

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from ksearch import env
from ksearch.pages import figures, roof, template, views
from ksearch.store.listing import Standing
from ksearch.types import Winner
from ksearch.web.answers import entry_of, opened, page, tagged
from ksearch.web.entries import Entry
from ksearch.web.lists import link
from ksearch.web.query import Query
from ksearch.web.site import Opened

_BESIDE = 40
"""Other workloads of the op that a roofline shows."""


def workload(request: Request) -> Response:
    """`/w/{name}`."""
    found = opened(request)
    view, part = _part(found, entry_of(found, request.path_params["name"]))
    return page(request, "web_workload.html.j2", view=view, part=part)


def part(request: Request) -> Response:
    """`/w/{name}/part`: asked again and again while the page is open."""
    found = opened(request)
    _, text = _part(found, entry_of(found, request.path_params["name"]))
    return tagged(request, text)


def drawn(request: Request) -> Response:
    """`/w/{name}/figures`."""
    found = opened(request)
    entry = entry_of(found, request.path_params["name"])
    made = figures.draw(view_of(found, entry), _beside(found, entry))
    text = json.dumps({name: figure.to_json() for name, figure in made.items()}, separators=(",", ":"))
    return tagged(request, text, media_type="application/json")


def view_of(found: Opened, entry: Entry) -> views.WorkloadView:
    """Everything about it."""
    store, target = found.store, entry.target
    workload = found.catalogue.workload(entry)
    winner = winner_of(found, entry)
    stored = None if winner is None or winner.artifact is None else store.artifact(winner.artifact)
    return views.workload_view(
        workload,
        target,
        winner,
        store.evaluations(workload, target),
        href=link(workload, target),
        environment={} if winner is None else store.environment(workload, target),
        source=None if stored is None else stored.source,
        db=str(store.path),
        default_db=str(env.database_path()),
    )


def winner_of(found: Opened, entry: Entry) -> Winner | None:
    return found.catalogue.listing.full([entry.number]).get(entry.number) if entry.number else None


def _part(found: Opened, entry: Entry) -> tuple[views.WorkloadView, Markup]:
    view = view_of(found, entry)
    standing: Standing | None = None
    if any(each.entry is entry for each in found.catalogue.running()):
        standing = found.catalogue.listing.standing(entry.workload_key, entry.target.key)
    source = "" if view.source is None else _highlighted(view.source, view.row.backend)
    tools = template.fragment("web_tools.html.j2", view=view, standing=standing, files=_files(view))
    text = template.fragment(
        "workload.html.j2", view=view, plans=figures.PLANS, source=source, back="/", tools=tools
    )
    return view, text


@functools.lru_cache(maxsize=64)
def _highlighted(source: str, backend: str) -> Markup:
    """33 KB take 70 ms, and a page that is open asks again and again."""
    return template.highlighted(source, backend)


def _files(view: views.WorkloadView) -> list[tuple[str, str]]:
    """What can be saved, by the name that its address ends in, and what it is called."""
    if view.winner is None:
        return []
    plain = "kernel.cu" if view.row.backend == "cuda" else "kernel.cpp"
    kernels = [(plain, "Source"), ("kernel.py", "Python file")] if view.source is not None else []
    return [*kernels, ("winner.ksb", "Bundle")]


def _beside(found: Opened, entry: Entry) -> tuple[roof.Place, ...]:
    same = found.catalogue.find(Query(op=entry.op, device=entry.device, sort="elements")).rows
    step = max(1, len(same) // _BESIDE)
    numbers = [each.number for each in same[::step] if each.number]
    return roof.places(found.catalogue.listing.full(numbers).values())

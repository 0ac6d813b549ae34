"""`/compare`: two winners side by side; of one alone, the list to choose the other from."""

from __future__ import annotations

import json
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from ksearch.errors import UsageError
from ksearch.pages import views
from ksearch.pages.comparison import Comparison
from ksearch.types import Target, Workload
from ksearch.web import lists
from ksearch.web.answers import entry_of, opened, page, tagged
from ksearch.web.query import Query
from ksearch.web.site import Opened
from ksearch.web.workloads import view_of


def compare(request: Request) -> Response:
    """With none or one chosen, a list whose links choose the next."""
    found = opened(request)
    names = request.query_params.getlist("w")
    chosen = [entry_of(found, name) for name in names]
    if len(chosen) < 2:

        def link(workload: Workload, target: Target) -> str:
            picked = (*names, views.slug(workload, target))
            return "/compare?" + urlencode([("w", name) for name in picked])

        query = Query.read({"result": "kernel", **request.query_params})
        return lists.answer(request, found, query, "choose.html.j2", link=link, chosen=names)
    both = _comparison(found, names)
    address = "/compare/figures?" + urlencode([("w", name) for name in names])
    return page(request, "compare.html.j2", both=both, figures=address)


def drawn(request: Request) -> Response:
    """`/compare/figures`."""
    figure = _comparison(opened(request), request.query_params.getlist("w")).samples()
    text = json.dumps({"samples": figure.to_json()}, separators=(",", ":"))
    return tagged(request, text, media_type="application/json")


def _comparison(found: Opened, names: list[str]) -> Comparison:
    if len(names) != 2:
        raise UsageError(f"two workloads are compared, and {len(names)} were chosen")
    left, right = (view_of(found, entry_of(found, name)) for name in names)
    return Comparison(left, right)

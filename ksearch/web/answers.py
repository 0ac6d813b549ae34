"""What every page of the app is made by: whole or in part, sent again only where it has changed."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ksearch.errors import KsearchError, StoreError, ToolMissing, UsageError
from ksearch.pages import template
from ksearch.types import digest
from ksearch.web import assets
from ksearch.web.entries import Entry
from ksearch.web.site import Opened, Site

_TITLES = {
    400: "This cannot be shown",
    404: "Not found",
    409: "This cannot be done",
    500: "Something is wrong here",
    501: "Something is not installed",
    503: "The database cannot be read",
}


def opened(request: Request) -> Opened:
    """The database, with everything that was committed until now. Raises StoreError."""
    site: Site = request.app.state.site
    return site.opened()


def entry_of(found: Opened, name: str) -> Entry:
    """Raises HTTPException where the database has no such workload."""
    entry = found.catalogue.entry(name)
    if entry is None:
        raise HTTPException(404, f"The database has no workload {name}; it may have had it before.")
    return entry


def page(request: Request, name: str, status: int = 200, **values: Any) -> Response:
    """The template as a whole page."""
    site: Site = request.app.state.site
    facts = {"database": site.path, "path": request.url.path, "asset": assets.address}
    text = template.fragment(name, **facts, **values)
    return tagged(request, text, status)


def refusal(request: Request, error: Exception) -> Response:
    """Any error as a page, or as one line where a script asked."""
    status, words = _status(error)
    if request.headers.get("x-ksearch") == "part":
        return PlainTextResponse(words, status)
    return page(request, "message.html.j2", status, title=_TITLES.get(status, f"Error {status}"), words=words)


def tagged(request: Request, text: str, status: int = 200, media_type: str = "text/html") -> Response:
    """Nothing but its tag where the browser has the same already."""
    tag = f'"{digest(text)[:32]}"'
    if status == 200 and request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return Response(text, status, {"ETag": tag} if status == 200 else None, media_type)


def _status(error: Exception) -> tuple[int, str]:
    match error:
        case HTTPException():
            return error.status_code, error.detail
        case UsageError():
            return 400, str(error)
        case ToolMissing():
            return 501, str(error)
        case StoreError():
            return 503, str(error)
        case KsearchError():
            return 409, str(error)
        case _:
            return 500, f"An internal error, please report it: {type(error).__name__}: {error}"

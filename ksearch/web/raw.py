"""optuna-dashboard beside our pages, read-only, for the raw studies."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from a2wsgi import WSGIMiddleware
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ksearch.web.answers import entry_of, opened
from ksearch.web.site import Opened, Site

if TYPE_CHECKING:
    from ksearch.search.dashboard import Dashboard

_WAITING = (
    "No search has ended yet: its study is written for optuna-dashboard when it does. "
    "The page of its workload shows it as it runs."
)


class Raw:
    """ASGI application that passes requests to the dashboard of the file that is there now."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._of: Opened | None = None
        self._dashboard: Dashboard | None = None
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = await run_in_threadpool(self._ready)
        await app(scope, receive, send)

    def dashboard(self) -> Dashboard:
        """Raises StoreError, and HTTPException where no search has ended yet."""
        self._ready()
        assert self._dashboard is not None
        return self._dashboard

    def _ready(self) -> ASGIApp:
        # optuna-dashboard takes half a second to import, which only this needs.
        from ksearch.search.dashboard import Dashboard, has_studies

        opened = self._site.opened()
        with self._lock:
            if self._app is None or self._of is not opened:
                path = opened.store.path
                if not has_studies(path):
                    raise HTTPException(404, _WAITING)
                self._of, self._dashboard = opened, Dashboard(path)
                # a2wsgi has types of its own for both sides
                adapted: Any = WSGIMiddleware(self._dashboard.app())
                self._app = adapted
            assert self._app is not None
            return self._app


def study(request: Request) -> Response:
    """`/w/{name}/study`: on to the study of a workload there."""
    found = opened(request)
    entry = entry_of(found, request.path_params["name"])
    names = {each.study for each in found.store.evaluations(found.catalogue.workload(entry), entry.target)}
    raw: Raw = request.app.state.raw
    numbers = [number for name in names if (number := raw.dashboard().number(name)) is not None]
    if not numbers:
        raise HTTPException(404, _WAITING)
    return RedirectResponse(f"/dashboard/studies/{max(numbers)}", 302)

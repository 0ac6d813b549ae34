"""The ASGI application: which address is answered by what."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ksearch.errors import KsearchError
from ksearch.web import answers, assets, comparison, downloads, lists, raw, workloads
from ksearch.web.site import Site


def make_app(site: Site) -> Starlette:
    """Every answer is read from `site`; who may ask is for `guard.Guard` to say, which goes around this."""
    dashboard = raw.Raw(site)
    files = ("winner.ksb", "kernel.py", "kernel.cu", "kernel.cpp")
    app = Starlette(
        routes=[
            Route("/", lists.winners),
            Route("/winners.ksb", downloads.winners_bundle),
            Route("/compare", comparison.compare),
            Route("/compare/figures", comparison.drawn),
            Route("/w/{name}", workloads.workload),
            Route("/w/{name}/part", workloads.part),
            Route("/w/{name}/figures", workloads.drawn),
            Route("/w/{name}/study", raw.study),
            *(Route(f"/w/{{name}}/{file}", downloads.winner_file) for file in files),
            Route("/assets/{name}", assets.asset),
            Route("/favicon.ico", assets.icon),  # optuna-dashboard's pages name none
            # Its pages name these themselves, so they stand at the root.
            *(Route(f"/{prefix}{{rest:path}}", dashboard) for prefix in ("dashboard", "api/", "static/")),
        ],
        exception_handlers=dict.fromkeys((HTTPException, KsearchError, Exception), _refuse),
    )
    app.state.site = site
    app.state.raw = dashboard
    return app


def _refuse(request: Request, error: Exception) -> Response:
    return answers.refusal(request, error)

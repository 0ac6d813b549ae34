"""Winners as files: a bundle of one or of a list, and one kernel as a source that needs no ksearch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from ksearch.errors import UsageError
from ksearch.pages import views
from ksearch.types import Winner
from ksearch.web.answers import entry_of, opened
from ksearch.web.lists import MOST_BUNDLED
from ksearch.web.query import Query
from ksearch.web.site import Opened
from ksearch.web.workloads import winner_of


def winners_bundle(request: Request) -> Response:
    """`/winners.ksb`: of all that a query finds."""
    found = opened(request)
    listed = found.catalogue.find(Query.read(request.query_params)).rows
    if len(listed) > MOST_BUNDLED:
        raise UsageError(
            f"{len(listed)} winners are too many for a download: narrow the search to {MOST_BUNDLED}, or "
            "run `ksearch export --bundle FILE.ksb`"
        )
    full = found.catalogue.listing.full([entry.number for entry in listed if entry.number])
    return _bundle(found, list(full.values()), "winners")


def winner_file(request: Request) -> Response:
    """`/w/{name}/winner.ksb`, `kernel.py`, `kernel.cu`, `kernel.cpp`."""
    found = opened(request)
    entry = entry_of(found, request.path_params["name"])
    winner = winner_of(found, entry)
    if winner is None:
        raise HTTPException(404, f"Nothing has won for {request.path_params['name']} yet.")
    name, suffix = views.slug(winner.workload, winner.target), Path(request.url.path).suffix
    if suffix == ".ksb":
        return _bundle(found, [winner], name)
    return Response(
        source(found, winner, suffix),
        media_type="text/plain",
        headers={"Content-Disposition": f'attachment; filename="{name}{suffix}"'},
    )


def source(found: Opened, winner: Winner, suffix: str) -> str:
    """The kernel as a file of its own. Raises UsageError where PyTorch won, or the op is not known here."""
    # They import torch, which takes a second and nothing else here needs.
    from ksearch import operators
    from ksearch.export.kernel import ExportedKernel
    from ksearch.export.source import source_text

    stored = None if winner.artifact is None else found.store.artifact(winner.artifact)
    text = None if stored is None else stored.source
    return source_text(ExportedKernel.of(operators.get(winner.workload.op), winner, text), suffix)


def _bundle(found: Opened, winners: Sequence[Winner], name: str) -> Response:
    from ksearch.export.bundle import write_bundle

    folder = tempfile.TemporaryDirectory(prefix="ksearch-")
    try:
        path = Path(folder.name) / f"{name}.ksb"
        write_bundle(path, found.store, winners)
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(
        path,
        filename=path.name,
        media_type="application/octet-stream",
        background=BackgroundTask(folder.cleanup),
    )

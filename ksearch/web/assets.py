"""Style, scripts and the icon, each under an address that changes with its content."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from ksearch.errors import ToolMissing
from ksearch.pages import template
from ksearch.types import digest

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_OURS = ("style.css", "web.css", "page.js", "live.js", "icon.svg")
_FOR_EVER = "private, max-age=31536000, immutable"


def address(name: str) -> str:
    """Raises ToolMissing where a package that ships it is not installed."""
    return f"/assets/{name}?v={_digest(name)}"


def asset(request: Request) -> Response:
    """`/assets/{name}`."""
    name = request.path_params["name"]
    if name not in (*_OURS, "plotly.js"):
        raise HTTPException(404, f"There is no file {name} here.")
    path = _path(name)
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": _FOR_EVER})


def icon(_request: Request) -> Response:
    """`/favicon.ico`."""
    return RedirectResponse(address("icon.svg"))


@functools.cache
def _digest(name: str) -> str:
    return digest(_path(name).read_bytes())[:16]


def _path(name: str) -> Path:
    if name != "plotly.js":
        return template.FOLDER / name
    found = importlib.util.find_spec("plotly")  # not imported: that takes 0.2 s
    if found is None or found.origin is None:
        raise ToolMissing("the figures need plotly, which is not installed: pip install 'ksearch[web]'")
    return Path(found.origin).parent / "package_data" / "plotly.min.js"

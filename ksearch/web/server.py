"""Binding an address and serving the app there until Ctrl-C."""

from __future__ import annotations

import errno
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from ksearch.errors import ToolMissing, UsageError

_ADDRESS_IN_USE = {errno.EADDRINUSE, errno.EACCES}


@dataclass(frozen=True, slots=True)
class Served:
    """Where it can be reached."""

    url: str
    """With the token, where one is asked for."""
    path: Path
    """Of the database."""


def serve(
    path: Path,
    host: str,
    port: int,
    token: str | None,
    ready: Callable[[Served], None],
    *,
    opens_browser: bool = False,
) -> None:
    """Serve the database until the process is interrupted; `ready` is called when pages can be asked for.

    Port 0 takes a free one. Off the loopback interface a token is made where none is given. Raises UsageError
    for a port that is taken or a host that is not one, StoreError, ToolMissing without the `web` extra.
    """
    try:
        import uvicorn

        from ksearch.web.app import make_app
        from ksearch.web.guard import Guard, Terms, is_loopback
        from ksearch.web.site import Site
        from ksearch.web.warming import warm_up
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"the web pages need {error.name}, which is not installed: pip install 'ksearch[web]'"
        ) from error
    site = Site(path)
    bound = _bind(host, port)
    try:
        site.opened()
        port = bound.getsockname()[1]
        if token is None and not is_loopback(host):
            token = secrets.token_urlsafe(32)
        app = Guard(make_app(site), Terms.of(host, port, token))
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the guard judges by the Host that was sent
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        # The page of a workload needs torch and Optuna for its figures, which take seconds to import.
        threading.Thread(target=warm_up, args=(site,), daemon=True).start()
        served = Served(_url(host, port, token), path)
        ready(served)
        if opens_browser:
            webbrowser.open(served.url)
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        bound.close()
        site.close()


def _bind(host: str, port: int) -> socket.socket:
    """Listening already, so that a browser that is quick waits instead of failing. Raises UsageError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"cannot serve on host {host!r}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        if error.errno in _ADDRESS_IN_USE:
            raise UsageError(
                f"port {port} of {host} is taken, or not yours: name another with --port, or 0 for a free one"
            ) from error
        raise UsageError(f"cannot serve on {host}: {error.strerror}") from error
    return bound


def _url(host: str, port: int, token: str | None) -> str:
    """As a browser takes it; for an address that stands for all of them, this machine's name."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?{urlencode({'token': token})}" if token else "")

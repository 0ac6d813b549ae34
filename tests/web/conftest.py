"""A served database for the tests of the web app."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
import uvicorn
from starlette.testclient import TestClient

from ksearch.web.app import make_app
from ksearch.web.guard import Guard, Terms
from ksearch.web.site import Site
from tests.pages import results


@pytest.fixture(scope="session")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that a page has to show; nobody may write into it."""
    return results.make(tmp_path_factory.mktemp("web") / "results.db")


@pytest.fixture
def own_db(db: Path, tmp_path: Path) -> Path:
    """A copy that may be written."""
    path = tmp_path / "own.db"
    with closing(sqlite3.connect(db)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
    return path


def client_of(path: Path, host: str = "127.0.0.1", token: str | None = None) -> TestClient:
    app = Guard(make_app(Site(path)), Terms.of(host, 80, token))
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture(scope="session")
def client(db: Path) -> TestClient:
    """Asks the app without a socket."""
    return client_of(db)


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """Serves a database on a free port, and gives its address."""
    with _serving() as serve:
        yield serve


@pytest.fixture(scope="module")
def module_served() -> Iterator[Callable[[Path], str]]:
    """The same, until the last test of a module."""
    with _serving() as serve:
        yield serve


@contextmanager
def _serving() -> Iterator[Callable[[Path], str]]:
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(path: Path) -> str:
        app = Guard(make_app(Site(path)), Terms.of("127.0.0.1", 0, None))
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        for _ in range(1000):
            if server.started:
                break
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for server, _ in running:
        server.should_exit = server.force_exit = True
    for _, thread in running:
        thread.join(10)

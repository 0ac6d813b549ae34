"""What every test gets: a database and cache of its own, few threads, and an honest answer about GPUs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ksearch import backends, cli, env
from ksearch.errors import NoSuchDevice
from ksearch.operators import registry, user_file
from ksearch.store import KillTable, Store
from ksearch.types import Target
from tests.turns import turn

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def pytest_configure() -> None:
    """What a shell starts in its background is deaf to Ctrl-C; some tests must hear it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _private_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the database and cache of the person who runs it."""
    for name in [name for name in os.environ if name.startswith("KSEARCH_")]:
        if name not in ("KSEARCH_REQUIRE_GPU", "KSEARCH_CXX"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KSEARCH_DB", str(tmp_path / "ksearch.db"))
    monkeypatch.setenv("KSEARCH_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op that a test registers is gone after it."""
    registry.names()  # the built-in ones are registered on first use, and must outlive the test
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))
    monkeypatch.setattr(user_file, "_ran", {})  # so a file whose ops are gone runs again


_kill_tables: dict[str, KillTable] = {}


@pytest.fixture(autouse=True)
def _shared_kill_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check makes of planted faults is found out once a run, not for each test's own database."""
    kills, keep = Store.kills, Store.keep_kills

    def kept(self: Store, op: str, target: Target, facts: Mapping[str, Any]) -> KillTable | None:
        key = KillTable(op, target.key, facts, ()).key
        return kills(self, op, target, facts) or _kill_tables.get(key)

    def keep_for_all(self: Store, table: KillTable) -> None:
        _kill_tables[table.key] = table
        keep(self, table)

    monkeypatch.setattr(Store, "kills", kept)
    monkeypatch.setattr(Store, "keep_kills", keep_for_all)


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> Iterator[None]:
    """Two threads: results of CPU kernels do not depend on the machine that the tests run on."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs one command: its exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of `tests.browsed`, for whoever only reads it."""
    from tests import browsed  # it traces ops: torch, which many a test does without

    path = tmp_path_factory.mktemp("browsed") / "k.db"
    browsed.fill(path)
    return path


def _has_gpu() -> bool:
    try:
        backends.get("cuda").target(0)
    except NoSuchDevice:
        return False
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`gpu` tests are skipped without a GPU, unless KSEARCH_REQUIRE_GPU says that there must be one."""
    if "soak" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes two minutes; -m soak runs it"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or env.require_gpu() or _has_gpu():
        return
    for item in marked:
        item.add_marker(
            pytest.mark.skip(reason="no CUDA device (KSEARCH_REQUIRE_GPU=1 makes this a failure)")
        )


_KEPT_BYTES = 1 << 30
"""Of a GPU's memory that PyTorch may keep in this process between tests, free for nobody else."""


def _let_go() -> None:
    torch = sys.modules.get("torch")
    with suppress(RuntimeError):  # after a kernel that has faulted, which its own test is to tell
        if torch and torch.cuda.is_initialized() and torch.cuda.memory_reserved() > _KEPT_BYTES:
            torch.cuda.empty_cache()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test on a GPU waits for its share of the memory. Before anything else, so that its timeout does not
    count the waiting."""
    if not item.get_closest_marker("gpu") or item.get_closest_marker("skip"):
        return (yield)
    share = item.get_closest_marker("gpu_memory")
    with turn(share.args[0] if share else "some"):
        try:
            return (yield)
        finally:
            _let_go()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.fail("KSEARCH_REQUIRE_GPU is set, and there is no CUDA device", pytrace=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless, and asking nobody for anything. Not for the session: while Playwright runs, its event loop is
    the thread's, and other tests may want one."""
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(names)} is on PATH")
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_QUIET))
        yield browser
        browser.close()

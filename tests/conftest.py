"""What every test gets: a database and cache of its own, few threads, and an honest answer about GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import backends, env
from ksearch.errors import NoSuchDevice
from ksearch.operators import registry, user_file


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


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> Iterator[None]:
    """Two threads: results of CPU kernels do not depend on the machine that the tests run on."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.fail("KSEARCH_REQUIRE_GPU is set, and there is no CUDA device", pytrace=False)

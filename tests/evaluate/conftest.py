"""What the tests of a worker share: a module starts one, for its own job, as the fixture `started`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksearch.evaluate.messages import Ready
from ksearch.evaluate.worker import Worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For binaries."""
    return tmp_path_factory.mktemp("binaries")


@pytest.fixture
def worker(started: tuple[Worker, Ready]) -> Worker:
    return started[0]

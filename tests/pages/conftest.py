"""The small database of `results`, and what is read from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch.pages import contents
from ksearch.pages.views import WorkloadView
from ksearch.store import Store
from ksearch.store.narrowed import Filter
from tests.pages import results


@pytest.fixture(scope="session")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that a page has to show; nobody may write into it."""
    return results.make(tmp_path_factory.mktemp("pages") / "results.db")


@pytest.fixture(scope="session")
def found(db: Path) -> Iterator[contents.Contents]:
    with Store.open(db, readonly=True) as store:
        yield contents.read(store, Filter())


@pytest.fixture(scope="session")
def views(found: contents.Contents) -> dict[tuple[str, str], WorkloadView]:
    """By op and backend."""
    return {(view.workload.op, view.target.backend): view for view in found.views()}

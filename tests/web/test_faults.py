"""What goes wrong with the database while its pages are open is said on a page, with a status, and passes."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ksearch.database import SCHEMA_VERSION
from ksearch.pages import views
from ksearch.search import mirror
from ksearch.store import Store
from ksearch.types import Outcome, Status
from ksearch.web.site import Site
from tests.pages import results
from tests.web.conftest import client_of

PAGES = ("/", f"/w/{views.slug(results.SOFTMAX, results.CPU)}", "/compare", "/dashboard", "/winners.ksb")


def write(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


@pytest.fixture
def client(own_db: Path) -> TestClient:
    """Of a database that was open before something happens to it."""
    made = client_of(own_db)
    assert made.get("/").status_code == 200
    return made


def test_an_empty_database_says_how_to_fill_it(tmp_path: Path) -> None:
    with Store.open(tmp_path / "empty.db") as store:
        client = client_of(store.path)
        text = client.get("/").text
        assert "Nothing was tuned here yet" in text
        assert "ksearch tune" in text
        assert client.get("/compare").status_code == 200
        assert client.get("/winners.ksb").status_code == 400
        results.add_search(store, results.FAILED, results.CPU, failing=24)  # and the first search appears
        text = client.get("/").text
        assert "Nothing was tuned" not in text
        assert "rmsnorm" in text
        assert "none passed yet" in text


@pytest.mark.parametrize("page", PAGES)
def test_a_database_that_vanishes_is_missed_and_found_again(
    client: TestClient, own_db: Path, page: str
) -> None:
    away = own_db.rename(own_db.with_name("away.db"))
    answer = client.get(page)
    assert answer.status_code == 503
    assert "not there any more" in answer.text
    line = client.get(page, headers={"x-ksearch": "part"})
    assert line.status_code == 503
    assert "<" not in line.text
    away.rename(own_db)
    assert client.get("/").status_code == 200


def test_another_file_at_its_place_is_opened(client: TestClient, own_db: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db") as store:
        results.add_winner(store, results.LINEAR, results.CPU, 3.0)
    own_db.unlink()
    shutil.copy(tmp_path / "other.db", own_db)
    text = client.get("/").text
    assert "linear" in text
    assert "softmax" not in text.partition("<tbody>")[2]


@pytest.mark.parametrize("page", PAGES)
def test_a_newer_schema_is_refused(client: TestClient, own_db: Path, page: str) -> None:
    write(own_db, f"INSERT INTO ksearch_schema VALUES ({SCHEMA_VERSION + 1}, '2030-01-01')")
    for again in range(2):
        answer = client.get(page)
        assert answer.status_code == 503, again
        assert "upgrade ksearch" in answer.text
    write(own_db, f"DELETE FROM ksearch_schema WHERE version > {SCHEMA_VERSION}")
    assert client.get("/").status_code == 200


def test_a_file_that_is_no_database_is_refused(client: TestClient, own_db: Path) -> None:
    own_db.unlink()
    own_db.write_bytes(b"not a database, but as long as a page of one" * 100)
    answer = client.get("/")
    assert answer.status_code == 503
    assert "is not a database" in answer.text


def test_an_error_of_our_own_is_a_page(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Site, "opened", lambda self: 1 // 0)
    answer = client.get("/")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.text


def test_nothing_is_written(client: TestClient, own_db: Path) -> None:
    """Not even Optuna's tables, which its own storage would make."""
    own_db.chmod(0o400)
    before = own_db.read_bytes()
    for page in PAGES:
        client.get(page)
    client.get("/api/studies")
    assert own_db.read_bytes() == before


# ---- optuna-dashboard -----------------------------------------------------------------------------


@pytest.fixture
def mirrored(own_db: Path) -> TestClient:
    """The search of one workload has ended, and its study is in Optuna's tables."""
    told = [mirror.Row(n, {"block": 64 << n}, Outcome(Status.PASSED, 9.0 - n)) for n in range(3)]
    with Store.open(own_db) as store:
        name = results.study(results.SOFTMAX, results.CPU)
        mirror.write(store.url, name, {"block": (64, 128, 256)}, told)
    return client_of(own_db)


def test_a_workload_leads_to_its_raw_study(mirrored: TestClient) -> None:
    answer = mirrored.get(f"/w/{views.slug(results.SOFTMAX, results.CPU)}/study")
    assert answer.status_code == 302
    assert answer.headers["location"] == "/dashboard/studies/1"
    page = mirrored.get("/dashboard/studies/1")
    assert page.status_code == 200
    assert "Optuna Dashboard" in page.text
    assert "unsafe-inline" not in page.headers["content-security-policy"].partition("script-src")[2]
    (study,) = mirrored.get("/api/studies").json()["study_summaries"]
    assert study["study_name"] == results.study(results.SOFTMAX, results.CPU)
    detail = mirrored.get("/api/studies/1", params={"after": 0}).json()
    assert sorted(trial["values"][0] for trial in detail["trials"]) == [7.0, 8.0, 9.0]
    assert mirrored.get("/static/bundle.js").status_code == 200


def test_a_search_that_has_not_ended_has_none_yet(mirrored: TestClient, client: TestClient) -> None:
    answer = mirrored.get(f"/w/{views.slug(results.RUNNING, results.CPU)}/study")
    assert answer.status_code == 404
    assert "No search has ended yet" in answer.text


def test_before_the_first_search_has_ended_there_is_no_dashboard(client: TestClient) -> None:
    for path in ("/dashboard", "/api/studies", f"/w/{views.slug(results.SOFTMAX, results.CPU)}/study"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "No search has ended yet" in answer.text

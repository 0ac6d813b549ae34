"""The entries in memory follow what others write into the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ksearch.store import Store
from ksearch.types import Artifact, Outcome, Status
from ksearch.web import catalogue
from ksearch.web.catalogue import Catalogue
from ksearch.web.found import ROWS
from ksearch.web.query import COLUMNS, Query
from tests.pages import results


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "results.db") as store:
        yield store


@pytest.fixture
def entries(writer: Store) -> Iterator[Catalogue]:
    with Store.open(writer.path, readonly=True) as store:
        made = Catalogue(store)
        yield made
        made.close()


def shown(entries: Catalogue, query: Query | None = None) -> list[tuple[str, str, float]]:
    entries.refresh()
    return [(entry.op, entry.result, entry.time_us) for entry in entries.find(query or Query()).rows]


def test_a_search_becomes_a_winner_and_a_better_one(writer: Store, entries: Catalogue) -> None:
    assert shown(entries) == []
    results.add_search(writer, results.SOFTMAX, results.CPU)
    assert shown(entries) == [("softmax", "none", 0.0)]
    results.add_winner(writer, results.SOFTMAX, results.CPU, None)
    assert shown(entries) == [("softmax", "pytorch", 100.0)]
    results.add_winner(writer, results.SOFTMAX, results.CPU, 40.0)
    assert shown(entries) == [("softmax", "kernel", 40.0)]
    results.add_winner(writer, results.GELU, results.GPU, 20.0)
    assert shown(entries) == [("gelu", "kernel", 20.0), ("softmax", "kernel", 40.0)]
    found = entries.find(Query())
    assert (len(found.kernels), found.by_pytorch, found.without) == (2, 0, 0)
    assert found.speedup == pytest.approx((5.0 * 2.5) ** 0.5)
    assert entries.values("op") == ["gelu", "softmax"]


def test_only_what_is_new_is_read(writer: Store, entries: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    results.add_winner(writer, results.SOFTMAX, results.CPU, 40.0)
    assert len(shown(entries)) == 1
    monkeypatch.setattr(Catalogue, "_read_all", lambda self: pytest.fail("all was read again"))
    results.add_winner(writer, results.SOFTMAX, results.CPU, 30.0)
    results.add_search(writer, results.OWN, results.GPU)
    assert shown(entries) == [("my_op", "none", 0.0), ("softmax", "kernel", 30.0)]
    monkeypatch.setattr(catalogue.Listing, "winners", lambda self, after: pytest.fail("nothing was written"))
    assert len(shown(entries)) == 2


def test_a_winner_that_a_merge_brings_back_is_seen(writer: Store, entries: Catalogue, tmp_path: Path) -> None:
    """It becomes the one in force under its old number."""
    results.add_winner(writer, results.SOFTMAX, results.CPU, 40.0)
    results.add_winner(writer, results.SOFTMAX, results.CPU, 50.0)
    assert shown(entries) == [("softmax", "kernel", 50.0)]
    with Store.open(tmp_path / "other.db") as other:
        old = writer.history(results.SOFTMAX, results.CPU)[0]
        newer = writer.history(results.SOFTMAX, results.CPU)[1]
        for winner in (newer, old):  # there it was tuned in the other order
            binary = f"{winner.workload.key} {winner.target.key}".encode()
            other.promote(winner, source="", binary=binary, environment={})
        with writer.union() as union:
            union.add("other", other.records())
    held = writer.find(results.SOFTMAX, results.CPU)
    assert held is not None
    assert shown(entries) == [("softmax", "kernel", held.time_us)]


def test_every_order_is_one_and_ends_with_what_has_no_figures(db: Path) -> None:
    with Store.open(db, readonly=True) as store:
        entries = Catalogue(store)
        entries.refresh()
        for column in COLUMNS:
            for sort in (column, f"-{column}"):
                rows = entries.find(Query(sort=sort)).rows
                assert len(rows) == 7
                if column not in ("op", "elements", "device"):
                    assert [row.number > 0 for row in rows] == [True] * 5 + [False] * 2
                keys = [getattr(row, column) for row in rows if row.number or column in ("op", "elements")]
                assert keys == sorted(keys, reverse=sort.startswith("-"))
        entries.close()


def test_a_search_runs_until_a_winner_or_a_silence(
    writer: Store, entries: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.add_search(writer, results.SOFTMAX, results.CPU)
    entries.refresh()
    assert [each.entry.op for each in entries.running()] == ["softmax"]
    with monkeypatch.context() as later:
        later.setattr(catalogue, "_RUNNING_S", 0.0)
        assert entries.running() == []
    results.add_winner(writer, results.SOFTMAX, results.CPU, 40.0)
    held = writer.find(results.SOFTMAX, results.CPU)
    assert held is not None
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat(timespec="seconds")
    writer.promote(
        replace(held, created=soon),
        source="",
        binary=f"{held.workload.key} {held.target.key}".encode(),
        environment={},
    )
    entries.refresh()
    assert entries.running() == []
    # Tuned again: its candidates are younger than the winner.
    outcome = Outcome(Status.WRONG, message="zeros")
    later_on = (datetime.now(UTC) + timedelta(seconds=9)).isoformat()
    monkeypatch.setattr("ksearch.store.now", lambda: later_on)
    writer.record(results.SOFTMAX, results.CPU, "again", 0, {"block": 1}, outcome, Artifact("", "", "", ""))
    entries.refresh()
    assert [each.study for each in entries.running()] == ["again"]


def test_pages_hold_fifty_each(writer: Store, entries: Catalogue) -> None:
    for rows in range(1, ROWS + 3):
        results.add_winner(writer, replace(results.SOFTMAX, shape=(rows, 64)), results.CPU, 40.0)
    entries.refresh()
    found = entries.find(Query())
    assert [len(found.page(number)) for number in (1, 2, 3)] == [50, 2, 0]
    assert found.pages == 2

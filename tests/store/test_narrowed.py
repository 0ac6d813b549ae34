"""What is asked of winners and searches, answered by the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from ksearch.store import Store, narrowed
from ksearch.store.narrowed import Filter
from tests import browsed
from tests.browsed import BEGUN, CPU, H200, HALF, LINEAR, SOFTMAX, WIDE


@pytest.fixture(scope="module")
def store(filled: Path) -> Iterator[Store]:
    with Store.open(filled, readonly=True) as opened:
        yield opened


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Filter(), 5),
        (Filter(op="softmax"), 4),
        (Filter(op="softmax", dtype="float16"), 1),
        (Filter(dims=(64, 256)), 3),
        (Filter(dims=(32, 256, 128)), 1),
        (Filter(dims=(32, 128)), 0),
        (Filter(policy="tf32"), 0),
        (Filter(device="cpu"), 1),
        (Filter(device="cuda:1"), 4),
        (Filter(device="h200"), 4),
        (Filter(device="%"), 0),
        (Filter(device="[2 "), 1),
        (Filter(status="baseline"), 1),
        (Filter(status="winner"), 4),
        (Filter(keys=frozenset({WIDE.key, LINEAR.key})), 2),
        (Filter(keys=frozenset()), 0),
        (Filter(since="a week ago"), 3),
        (Filter(since="a week ago", op="softmax", status="winner"), 2),
    ],
)
def test_a_filter_narrows_lists_counts_and_whole_winners_alike(
    store: Store, asked: Filter, expected: int
) -> None:
    if asked.since is not None:  # not above: the names of tests must be the same in every process
        asked = replace(asked, since=(datetime.now(UTC) - timedelta(days=7)).isoformat())
    listed = list(narrowed.listed(store, asked))
    assert len(listed) == narrowed.count(store, asked) == expected
    whole = narrowed.whole(store, asked)
    assert [(each.workload, each.target) for each in whole] == [
        (each.workload, each.target) for each in listed
    ]
    assert all(found in store.winners() for found in whole)


def test_what_is_listed_is_the_winner_without_most_of_its_evidence(store: Store) -> None:
    for found in narrowed.listed(store, Filter()):
        whole = store.find(found.workload, found.target)
        assert whole is not None
        certificate = {"speedup_ci": whole.certificate["speedup_ci"]}
        assert found == replace(whole, launch=None, certificate=certificate)


def test_a_winner_that_was_replaced_is_not_listed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "k.db") as store:
        for time_us in (10.0, 9.0):
            found = browsed.winner(SOFTMAX, CPU, (time_us, time_us, 8.0), 0)
            store.promote(found, source=None, binary=None, environment={})
        (found,) = narrowed.listed(store, Filter())
        assert (found.time_us, narrowed.count(store)) == (9.0, 1)


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("op", (LINEAR, H200)),
        ("age", (WIDE, H200)),
        ("time", (WIDE, H200)),
        ("speedup", (HALF, H200)),
        ("ceiling", (WIDE, H200)),
        ("gain", (WIDE, H200)),
    ],
)
def test_a_list_is_sorted_before_it_is_cut(store: Store, sort: str, first: object) -> None:
    everything = list(narrowed.listed(store, Filter(), sort))
    assert (everything[0].workload, everything[0].target) == first
    assert list(narrowed.listed(store, Filter(), sort, 2)) == everything[:2]
    keys = {
        "age": [found.created for found in everything][::-1],
        "time": [found.time_us for found in everything][::-1],
        "speedup": [found.speedup for found in everything][::-1],
        "ceiling": [found.percent_of_ceiling for found in everything],
        "gain": [found.time_us - found.ceiling_us for found in everything][::-1],
    }
    assert keys.get(sort, []) == sorted(keys.get(sort, []))


def test_all_that_decides_is_in_one_index(store: Store) -> None:
    """Else 100,000 winners are read with their certificates: 1 GB."""
    plans: list[str] = []

    def explain(connection, cursor, statement, parameters, context, executemany) -> None:
        plan = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        plans.append(" ".join(row[3] for row in plan))

    event.listen(store._reader, "before_cursor_execute", explain)
    since = Filter(since="2026-01-01", status="winner")
    for sort in narrowed.SORTS:
        list(narrowed.listed(store, since, sort, 1))
        assert "winners USING COVERING INDEX winner_figures" in plans[0], plans[0]
        plans.clear()
    narrowed.count(store, since)
    narrowed.total_gain_us(store, since)
    assert all("winners USING COVERING INDEX winner_figures" in plan for plan in plans), plans


def test_searches_are_counted_by_status_with_a_winner_or_without(store: Store) -> None:
    begun, softmax = narrowed.searched(store, Filter())
    assert (begun.workload, begun.target, begun.counts) == (BEGUN, CPU, {"wrong": 2, "timeout": 1})
    assert (softmax.workload, softmax.target, softmax.counts) == (SOFTMAX, CPU, {"wrong": 2, "passed": 1})
    assert narrowed.searched(store, Filter(op="softmax", device="cuda")) == []


def test_the_nearest_winner_is_of_the_op_then_dtype_then_size(store: Store) -> None:
    def nearest(workload, target=H200):
        found = narrowed.nearest(store, workload, target)
        return found and found.workload

    assert nearest(replace(SOFTMAX, shape=(8, 60000))) == WIDE
    assert nearest(replace(SOFTMAX, shape=(64, 300))) == SOFTMAX
    assert nearest(replace(HALF, shape=(8, 60000))) == HALF
    assert nearest(replace(BEGUN, shape=(8, 60000))) == WIDE
    assert nearest(replace(LINEAR, op="linear_relu")) == LINEAR
    assert nearest(LINEAR, CPU) is None
    assert nearest(WIDE, replace(CPU, device="another")) is None


def test_places_and_names(store: Store) -> None:
    of_softmax = Filter(op="softmax")
    assert narrowed.places(store, of_softmax, (8, 60000), 1) == [(WIDE, H200)]
    assert len(narrowed.places(store, of_softmax, None, 100)) == 4
    assert narrowed.ops(store) == ["gelu", "linear", "softmax"]
    assert [each.device for each in narrowed.targets(store)] == [CPU.device, H200.device]
    assert narrowed.targets(store, "cuda") == [H200]
    assert narrowed.total_gain_us(store, of_softmax) == pytest.approx(2.0 + 1.0 + 0.5 + 30.0)
    assert narrowed.total_gain_us(store, Filter(op="linear")) == 0.0

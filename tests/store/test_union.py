from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ksearch.errors import StoreError
from ksearch.store import Added, Store
from ksearch.types import Outcome, Status, Target, Winner, Workload, digest
from tests.store.test_store import BINARY, TARGET, WORKLOAD, winner

OTHER = Workload("softmax", (8, 16))


def keep(store: Store, promoted: Winner, torch: str = "2.13.0", ksearch: str = "0.1.0") -> Winner:
    kernel = promoted.artifact is not None
    store.promote(
        promoted,
        source="// source" if kernel else None,
        binary=BINARY if kernel else None,
        log="log",
        environment={"ksearch": ksearch, "torch": torch},
    )
    return promoted


def won(low: float, created: str = "2026-01-01", workload: Workload = WORKLOAD, **changes) -> Winner:
    return winner(workload, created=created, certificate={"speedup_ci": [low, low + 1]}, **changes)


def lost(created: str = "2026-01-01", workload: Workload = WORKLOAD) -> Winner:
    return winner(workload, created=created, config=None, launch=None, artifact=None, certificate={})


@pytest.fixture
def stores(tmp_path: Path):
    with Store.open(tmp_path / "a.db") as a, Store.open(tmp_path / "b.db") as b:
        yield a, b


def add(goal: Store, source: Store) -> Added:
    with goal.union() as union:
        return union.add(str(source.path), source.records(), source.trials())


def content(store: Store) -> tuple[list, list, list]:
    records = [
        (each.winner, dict(each.environment), each.artifact and each.artifact()) for each in store.records()
    ]
    return store.winners(), sorted(records, key=repr), sorted(store.trials(), key=repr)


def test_what_only_one_side_has_comes_with_all_that_belongs_to_it(stores) -> None:
    a, b = stores
    keep(a, won(1.5))
    theirs = keep(b, won(1.4, workload=OTHER), torch="2.12.0")
    b.record(OTHER, TARGET, "study", 3, {"block": 1}, Outcome(Status.PASSED, time_us=2.0, repeats=4))
    added = add(a, b)
    assert added == Added(str(b.path), winners=1, trials=1)
    assert a.find(OTHER, TARGET) == theirs
    stored = a.artifact(digest(BINARY))
    assert (stored.binary, stored.source, stored.log) == (BINARY, "// source", "log")
    assert a.environment(OTHER, TARGET) == {"ksearch": "0.1.0", "torch": "2.12.0"}
    assert a.evaluations(OTHER, TARGET) == b.evaluations(OTHER, TARGET)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((won(1.5), {}), (won(1.4, created="2027-01-01"), {"torch": "3.0"})),
        ((won(1.5), {}), (lost(created="2027-01-01"), {})),
        ((lost(created="2026-01-02"), {}), (won(0.9), {})),
        ((won(1.5), {"ksearch": "0.10.0"}), (won(1.5, created="2027-01-01"), {"ksearch": "0.9.0"})),
        ((won(1.5), {"torch": "2.13.0+cpu"}), (won(1.5, created="2027-01-01"), {"torch": "2.9.1"})),
        ((won(1.5, created="2026-01-02"), {}), (won(1.5), {})),
    ],
)
def test_of_two_the_better_is_in_force_whoever_is_first(stores, better, worse) -> None:
    a, b = stores
    keep(a, better[0], **better[1])
    keep(b, worse[0], **worse[1])
    added = add(a, b)
    (conflict,) = added.conflicts
    assert (conflict.kept, conflict.dropped, conflict.taken) == (better[0], worse[0], False)
    assert (added.winners, added.history) == (0, 1)
    assert a.find(WORKLOAD, TARGET) == better[0]
    assert set(map(repr, a.history(WORKLOAD, TARGET))) == {repr(better[0]), repr(worse[0])}
    with Store.open(b.path) as again:
        (conflict,) = (first := add(again, a)).conflicts or [None]
    assert first.winners == 1
    assert conflict is None or conflict.taken
    assert b.find(WORKLOAD, TARGET) == better[0]


def test_the_second_side_is_taken_where_it_is_better(stores) -> None:
    a, b = stores
    keep(a, won(1.1))
    keep(b, won(1.6, time_us=8.0))
    added = add(a, b)
    (conflict,) = added.conflicts
    assert conflict.taken
    assert (conflict.kept, conflict.source) == (b.find(WORKLOAD, TARGET), str(b.path))
    assert (added.winners, added.history) == (1, 0)
    assert a.find(WORKLOAD, TARGET).time_us == 8.0


def test_again_it_changes_nothing(stores) -> None:
    a, b = stores
    keep(a, won(1.5))
    keep(b, won(1.4, created="2026-03-01"))
    keep(b, won(1.3, workload=OTHER))
    b.record(OTHER, TARGET, "study", 1, {"block": 1}, Outcome(Status.WRONG, message="no"))
    add(a, b)
    before = content(a)
    again = add(a, b)
    assert (again.winners, again.history, again.trials, again.conflicts) == (0, 0, 0, ())
    assert again.known == 2
    assert content(a) == before
    add(b, a)
    assert content(b)[1:] == before[1:]
    assert b.find(WORKLOAD, TARGET) == a.find(WORKLOAD, TARGET)


@pytest.mark.parametrize("older_first", [True, False])
def test_what_was_tuned_again_does_not_come_back_from_an_old_copy(tmp_path: Path, older_first: bool) -> None:
    """A faster PyTorch made the speed-up smaller; a copy from before still has the larger one."""
    with Store.open(tmp_path / "copy.db") as copy, Store.open(tmp_path / "now.db") as now:
        for store in (copy, now):
            keep(store, won(2.0))
        newer = keep(now, won(1.2, created="2026-09-01"), torch="2.14")
        goal, source = (copy, now) if older_first else (now, copy)
        added = add(goal, source)
        assert added.conflicts == ()
        assert goal.find(WORKLOAD, TARGET) == newer
        assert len(goal.history(WORKLOAD, TARGET)) == 2


def test_what_lost_here_and_was_tuned_over_the_winner_there_is_in_force_again(tmp_path: Path) -> None:
    """The newer came first without its past, as out of a bundle, and lost to what it had replaced."""
    paths = (tmp_path / f"{name}.db" for name in ("goal", "bundle", "now"))
    goal, bundle, now = (Store.open(path) for path in paths)
    with goal, bundle, now:
        for store in (goal, now):
            keep(store, won(2.0))
        for store in (bundle, now):
            newer = keep(store, won(1.2, created="2026-09-01"), torch="2.14")
        assert len(add(goal, bundle).conflicts) == 1
        assert goal.find(WORKLOAD, TARGET) == won(2.0)
        added = add(goal, now)
        assert (added.known, added.conflicts) == (2, ())
        assert goal.find(WORKLOAD, TARGET) == newer
        assert len(goal.history(WORKLOAD, TARGET)) == 2
        assert add(goal, bundle).known == 1
        assert goal.find(WORKLOAD, TARGET) == newer


def test_equal_devices_of_two_hosts_share_a_winner_and_others_do_not(stores) -> None:
    a, b = stores
    keep(a, won(1.5))
    keep(b, won(1.6, target=replace(TARGET, index=5)))
    keep(b, won(1.1, target=replace(TARGET, device="NVIDIA H100")))
    added = add(a, b)
    assert len(added.conflicts) == 1
    assert sorted(each.target.device for each in a.winners()) == ["NVIDIA H100", "NVIDIA H200"]
    assert a.find(WORKLOAD, TARGET).target.index == 5


def test_of_one_config_tried_twice_the_later_trial_is_kept(stores) -> None:
    a, b = stores
    place = (WORKLOAD, Target("cpu", "x", "y"), "study", 1, {"block": 1})
    a.record(*place, Outcome(Status.PASSED, time_us=5.0))
    b.record(*place, Outcome(Status.WRONG, message="later"))
    assert add(a, b).trials == 1
    (trial,) = a.evaluations(*place[:2])
    assert trial.outcome.message == "later"
    assert add(b, a).trials == 0


def test_what_fails_half_way_leaves_everything_as_it_was(stores) -> None:
    a, b = stores
    keep(a, won(1.1))
    keep(b, won(1.6))
    keep(b, won(1.3, workload=OTHER))
    before = content(a)

    def broken():
        yield from b.records()
        raise StoreError("the disk is gone")

    with pytest.raises(StoreError, match="the disk is gone"), a.union() as union:
        union.add("b", broken())
    assert content(a) == before


def test_a_damaged_side_leaves_everything_as_it_was(stores, tmp_path: Path) -> None:
    a, b = stores
    keep(a, won(1.1))
    for rows in range(1, 60):
        keep(b, won(1.6, workload=Workload("softmax", (rows, 16))))
    b.close()
    raw = bytearray(b.path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 9000] = b"\xff" * 9000
    broken = tmp_path / "broken.db"
    broken.write_bytes(raw)
    before = content(a)
    with Store.open(broken, readonly=True) as source, pytest.raises(StoreError, match="damaged"):
        add(a, source)
    assert content(a) == before

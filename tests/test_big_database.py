"""The large database that browsing is measured on is one that ksearch itself would have written."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ksearch.certificate import Certificate
from ksearch.store import Store, narrowed
from ksearch.store.narrowed import Filter
from tests import big_database

UNTIL = datetime(2026, 11, 20, tzinfo=UTC)


def test_it_reads_as_what_was_promoted_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "big.db"
    big_database.make(path, winners=200, trials=2000, until=UNTIL)
    with Store.open(path, readonly=True) as store:
        winners = store.winners()
        assert len(winners) == narrowed.count(store) == 200
        assert len({(each.workload, each.target) for each in winners}) == 200
        assert {each.target for each in winners} == set(big_database.TARGETS)
        for each in winners:
            known = Certificate.read(each.certificate)
            assert known.speedup_ci is not None
            assert each.speedup >= 1.0
            assert each.percent_of_ceiling <= 100.0
            assert each.created < UNTIL.isoformat()
            if each.artifact is not None:
                stored = store.artifact(each.artifact)
                assert stored is not None
                assert big_database.digest(stored.binary) == each.artifact
        assert sum(each.config is None for each in winners) == 200 // big_database.LOST
        histories = [len(store.history(each.workload, each.target)) for each in winners]
        assert sorted(histories)[-5:] == [1, 2, 2, 2, 2]
        searched = narrowed.searched(store, Filter())
        assert sum(sum(each.counts.values()) for each in searched) == 2000
        assert len(searched) == 200 // big_database.SEARCHED
        evaluations = store.evaluations(searched[0].workload, searched[0].target)
        passed = [each.outcome.time_us for each in evaluations if each.outcome.time_us is not None]
        assert len(evaluations) == 200
        assert len(set(passed)) > 100
    with pytest.raises(FileExistsError):
        big_database.make(path)

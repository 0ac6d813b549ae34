"""Kernels for another number of rows, or of another GPU: used where they were measured, and nowhere else."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import ksearch
from ksearch import env
from ksearch.errors import NoWinner
from ksearch.runtime import Match, known, refresh
from ksearch.runtime.region import Neighbour, alike, difference, nearest
from ksearch.store import Store
from ksearch.types import Target, Workload
from tests.runtime.conftest import TARGET, promote

H200 = Target("cuda", "sm_90", "NVIDIA H200")
H100 = Target("cuda", "sm_90", "NVIDIA H100 80GB HBM3")
A100 = Target("cuda", "sm_80", "NVIDIA A100")
WORKLOAD = Workload("softmax", (100, 64))
NEAR = [[50, 1.2], [100, 1.5], [200, 1.1], [400, 0.9]]


def neighbour(
    workload: Workload = WORKLOAD,
    target: Target = H200,
    near: Sequence[Sequence[float]] = NEAR,
    most: int = 10**6,
) -> Neighbour:
    return Neighbour(workload, target, 1.5, most, near)


@pytest.mark.parametrize(
    ("rows", "speedup"),
    [(100, 1.5), (50, 1.2), (51, 1.2), (150, 1.1), (200, 1.1), (201, 0.9), (400, 0.9), (401, 0.0), (49, 0.0)],
)
def test_between_two_counts_the_lesser_speed_is_expected(rows: int, speedup: float) -> None:
    assert neighbour().speedup_at(rows) == speedup


def test_a_kernel_takes_no_more_rows_than_it_can() -> None:
    assert neighbour(most=120).speedup_at(120) == 1.1
    assert neighbour(most=120).speedup_at(121) == 0.0
    assert neighbour(most=0).speedup_at(100) == 1.5, "as many as it was tuned for"
    assert neighbour(most=0).speedup_at(99) == 0.0


def test_the_fastest_of_those_that_were_measured_around_it() -> None:
    slow, fast = neighbour(), neighbour(replace(WORKLOAD, shape=(300, 64)), near=[[120, 1.9], [300, 2.0]])
    wanted = replace(WORKLOAD, shape=(150, 64))
    assert nearest([slow, fast], wanted, H200) is fast
    assert nearest([slow], replace(WORKLOAD, shape=(5, 30, 64)), H200) is slow
    assert nearest([slow, fast], replace(WORKLOAD, shape=(399, 64)), H200) is None
    for other in (
        {"op": "log_softmax"}, {"dtype": "bfloat16"}, {"program": "another"}, {"options": (("eps", 1.0),)},
        {"policy": "tf32"}, {"shape": (150, 65)}, {"inner": 8},
    ):  # fmt: skip
        assert nearest([slow, fast], replace(wanted, **other), H200) is None, other
    assert nearest([slow, fast], wanted, H100) is None


def test_the_same_workload_on_another_gpu_of_the_architecture() -> None:
    here = neighbour()
    assert alike([here], WORKLOAD, H100) is here
    assert alike([here], replace(WORKLOAD, shape=(101, 64)), H100) is None
    assert alike([here], WORKLOAD, A100) is None
    assert alike([neighbour(target=TARGET)], WORKLOAD, TARGET) is None, "a CPU's binary may use all it had"


def test_the_difference_to_the_closest_is_told_field_by_field() -> None:
    stored = [(WORKLOAD, H200), (replace(WORKLOAD, dtype="bfloat16", options=(("eps", 1.0),)), H100)]
    wanted = replace(WORKLOAD, shape=(7, 64), dtype="bfloat16")
    assert difference((wanted, H200), stored) == [
        ("shape", "7x64", "100x64"),
        ("dtype", "bfloat16", "float32"),
    ]
    assert difference((replace(WORKLOAD, dtype="bfloat16"), H100), stored) == [
        ("option eps", "absent", "1.0")
    ]
    assert difference((wanted, H200), []) == []


@pytest.fixture
def measured(backend):
    """A winner for 4x8 that was measured from 2 to 8 rows."""
    promote("softmax", (4, 8))
    connection = sqlite3.connect(env.database_path())
    certificate = json.dumps({"near": [[2, 1.2], [4, 2.0], [8, 1.1]]})
    launch = json.dumps({"alignment": 4, "threads": 2, "most_rows": 6})
    connection.execute("UPDATE winners SET certificate = ?, launch = ?", (certificate, launch))
    connection.commit()
    connection.close()


def test_a_near_kernel_is_loaded_called_and_told_once(measured, backend, caplog):
    caplog.set_level(logging.INFO, "ksearch")
    for _ in range(3):
        handle = ksearch.load("softmax", (5, 8))
        assert handle.match is Match.NEAR
        assert handle.workload.shape == (5, 8)
        assert handle.winner.workload.shape == (4, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "softmax 5x8 float32 on Fake CPU runs the kernel for 4x8 (near)"
    ]
    handle(torch.randn(3, 8))  # not its shape
    assert backend.launched == []
    out = torch.zeros(2, 3, 8)
    assert ksearch.ops.softmax(torch.randn(2, 3, 8), out=out) is out
    assert backend.launched[-1][1] == 6, "rows"
    assert (out == 42).sum() == 4 * 8, "the stand-in for a kernel fills what it was promoted for"


@pytest.mark.parametrize("shape", [(1, 8), (7, 8), (8, 8), (9, 8), (5, 9)])
def test_beyond_what_it_takes_or_was_measured_pytorch_runs(measured, shape):
    assert ksearch.load("softmax", shape).match is Match.FALLBACK


def test_a_kernel_for_many_numbers_of_rows_is_loaded_once(measured, backend):
    handles = [ksearch.load("softmax", (rows, 8)) for rows in (2, 5, 6)]
    assert [handle.match for handle in handles] == ["near"] * 3
    assert len(backend.loaded) == 1


def test_a_database_of_before_has_exact_matches_only(backend):
    promote("softmax", (4, 8))
    assert ksearch.load("softmax", (4, 8)).match is Match.EXACT
    assert ksearch.load("softmax", (5, 8)).match is Match.FALLBACK


def test_require_turns_a_miss_into_an_error(measured, backend, monkeypatch):
    monkeypatch.setenv("KSEARCH_REQUIRE", "1")
    assert ksearch.load("softmax", (4, 8)).match is Match.EXACT
    assert ksearch.load("softmax", (5, 8)).match is Match.NEAR
    with pytest.raises(NoWinner, match="shape: wanted 4x9, stored 4x8") as error:
        ksearch.load("softmax", (4, 9))
    assert "dtype: " not in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(NoWinner, match="dtype: wanted float16, stored float32"):
        ksearch.ops.softmax(torch.randn(4, 8, dtype=torch.float16))
    with pytest.raises(NoWinner, match="no winner of sigmoid at all"):
        ksearch.ops.sigmoid(torch.randn(4, 8))
    with pytest.raises(NoWinner, match="float64"):
        ksearch.ops.softmax(torch.randn(4, 8, dtype=torch.float64))
    refresh()
    backend.refuse_load = True
    with pytest.raises(NoWinner, match="no kernel image"):
        ksearch.load("softmax", (4, 8))


def test_require_with_a_database_that_does_not_read(measured, backend, monkeypatch):
    monkeypatch.setenv("KSEARCH_REQUIRE", "1")
    connection = sqlite3.connect(env.database_path())
    connection.execute("UPDATE workloads SET options = 'no json'")
    connection.commit()
    connection.close()
    with pytest.raises(NoWinner, match="no winner of softmax at all"):
        ksearch.load("softmax", (4, 9))


def test_what_is_known_of_a_database(measured, caplog):
    assert [each.shape for each in known.kernels("softmax", TARGET)] == [(4, 8)]
    assert known.kernels("softmax", replace(TARGET, arch="x86_64-other")) == ()
    promote("softmax", (4, 9), None)
    assert len(known.kernels("softmax", TARGET)) == 1, "PyTorch won"
    before = known.state()
    promote("softmax", (4, 10))
    assert known.state() != before
    connection = sqlite3.connect(env.database_path())
    connection.execute("UPDATE workloads SET options = 'no json'")
    connection.commit()
    connection.close()
    assert known.kernels("softmax", TARGET) == ()
    assert "the winners for softmax cannot be listed" in caplog.text


def test_no_winners_are_known_where_there_is_no_database():
    assert known.kernels("softmax", TARGET) == ()
    assert known.state() == ""
    Store.open(env.database_path()).close()
    assert known.state() == ""


def test_disable_runs_pytorch_and_looks_into_no_database(measured, backend, monkeypatch, caplog):
    monkeypatch.setenv("KSEARCH_DISABLE", "1")
    monkeypatch.setenv("KSEARCH_DB", "/no/such/file")
    monkeypatch.setattr("ksearch.runtime.lookup._rows", lambda *_, **__: pytest.fail("it was opened"))
    handle = ksearch.load("softmax", (4, 8))
    assert (handle.match, handle.reason) == (Match.FALLBACK, "KSEARCH_DISABLE is set")
    x = torch.randn(4, 8)
    assert torch.equal(handle(x), torch.softmax(x, -1))
    assert torch.equal(ksearch.ops.softmax(x), torch.softmax(x, -1))
    assert backend.launched == []
    assert caplog.text == ""

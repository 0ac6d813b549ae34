from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ksearch.pages import contents, views
from ksearch.pages.views import Overview, WorkloadView
from ksearch.store import Store
from ksearch.store.narrowed import Filter
from ksearch.types import Outcome, Status
from tests.pages import results

Views = dict[tuple[str, str], WorkloadView]


def test_an_overview_counts_what_became_of_each_workload(found: contents.Contents) -> None:
    overview = found.overview
    assert [row.result for row in overview.rows].count("kernel") == len(overview.kernels) == 4
    assert (overview.by_pytorch, overview.without) == (1, 2)
    assert overview.devices == ("NVIDIA H200", "Some CPU, 2 threads")
    assert overview.values("dtype") == ("bfloat16", "float16", "float32")


def test_a_workload_that_pytorch_won_counts_as_no_speed_up(found: contents.Contents) -> None:
    # 100/50, 100/4, 100/9, 100/20, and 1 for PyTorch
    assert found.overview.speedup == pytest.approx((2 * 25 * 100 / 9 * 5) ** (1 / 5))
    assert found.overview.percent_of_ceiling == pytest.approx(80.0)


def test_an_empty_overview_has_no_means() -> None:
    assert Overview("nothing", ()).speedup is None
    assert Overview("nothing", ()).percent_of_ceiling is None


def test_rows_keep_the_order_of_winners_and_end_with_those_without(found: contents.Contents) -> None:
    assert [(row.op, row.backend) for row in found.overview.rows] == [
        ("gelu", "cpu"), ("linear", "cuda"), ("my_op", "cpu"), ("softmax", "cpu"), ("softmax", "cuda"),
        ("layernorm", "cpu"), ("rmsnorm", "cpu"),
    ]  # fmt: skip


def test_slugs_differ_by_target_and_are_fit_for_an_address(found: contents.Contents) -> None:
    slugs = {row.slug for row in found.overview.rows}
    assert len(slugs) == len(found.overview.rows)
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", slug) for slug in slugs)
    assert all(row.href == f"#{row.slug}" for row in found.overview.rows)


def test_a_search_without_a_winner_says_how_far_it_came(views: Views) -> None:
    running, failed = views["layernorm", "cpu"], views["rmsnorm", "cpu"]
    times = [each.outcome.time_us for each in running.evaluations if each.outcome.time_us is not None]
    assert (running.row.result, running.row.time_us, running.passed) == ("none", min(times), 23)
    assert (failed.row.result, failed.row.time_us, failed.passed) == ("none", None, 0)
    assert failed.snippet == ""
    assert failed.compared == ()


def test_what_ran_side_by_side_has_the_runner_up_and_peers_if_they_were_kept(views: Views) -> None:
    kinds = [each.kind for each in views["softmax", "cuda"].compared]
    assert kinds == ["winner", "runner_up", "pytorch", "peer", "ceiling"]
    assert [each.kind for each in views["softmax", "cpu"].compared] == ["winner", "pytorch", "ceiling"]
    winner, pytorch, ceiling = views["softmax", "cpu"].compared
    assert (winner.speedup, pytorch.speedup, ceiling.percent_of_ceiling) == (2.0, 1.0, 100.0)


def test_where_pytorch_won_the_fastest_kernel_is_still_shown(views: Views) -> None:
    view = views["gelu", "cpu"]
    assert view.row.result == "pytorch"
    assert view.row.alarm.startswith("1.20 times")
    assert [each.name for each in view.compared] == ["fastest kernel", "PyTorch", "ceiling"]
    assert [(each.name, each.value) for each in view.config] == [("block", "128"), ("store", results.NASTY)]
    assert view.source is None


def test_the_config_names_the_runner_ups_value_only_where_it_differs(views: Views) -> None:
    assert [each.runner_up for each in views["softmax", "cpu"].config] == ["64", ""]


def test_failures_are_counted_by_reason_the_most_frequent_first(views: Views) -> None:
    wrong, compile_error = views["softmax", "cpu"].failures
    assert (wrong.status, wrong.count, wrong.share) == ("wrong", 3, 3 / 24)
    assert (compile_error.status, compile_error.count) == ("compile_error", 2)
    assert wrong.message == f"off by 3e-2 {results.NASTY}"


def test_a_certificate_of_another_hand_does_not_stop_a_page(views: Views) -> None:
    view = views["my_op", "cpu"]  # its errors are a word
    assert view.errors == ()
    assert view.near == ((64, 1.5), (128, 2.0))
    assert [name for name, _ in view.evidence] == ["certificate"]


def test_evidence_speaks_of_microseconds_with_their_sign(db: Path) -> None:
    with Store.open(db, readonly=True) as store:
        winner = store.find(results.SOFTMAX, results.CPU)
    assert winner is not None
    winner = replace(winner, certificate={**winner.certificate, "errors": {}})
    said = dict(views_of(winner).evidence)
    assert "µs" in said["samples"]
    assert " us" not in said["samples"]
    assert results.NASTY in said["measured under"]


def views_of(winner: views.Winner) -> WorkloadView:
    facts = (winner.workload, winner.target, winner, [])
    return views.workload_view(*facts, href="#", environment={"device": results.NASTY})


def test_only_the_winners_own_search_is_shown_else_the_latest(tmp_path: Path) -> None:
    workload, target = results.SOFTMAX, results.CPU
    with Store.open(tmp_path / "two.db") as store:
        for name, times in (("first", (9.0, 8.0)), ("second", (7.0,))):
            for number, time_us in enumerate(times):
                outcome = Outcome(Status.PASSED, time_us)
                store.record(workload, target, name, number, {"block": number}, outcome)
        evaluations = store.evaluations(workload, target)
        results.add_winner(store, workload, target, 8.0, study="first")
        winner = store.find(workload, target)
    searching = views.workload_view(workload, target, None, evaluations, href="#")
    assert [each.outcome.time_us for each in searching.evaluations] == [7.0]
    won = views.workload_view(workload, target, winner, evaluations, href="#")
    assert [each.outcome.time_us for each in won.evaluations] == [9.0, 8.0]


@pytest.mark.parametrize(
    ("asked", "ops"),
    [
        (Filter(op="softmax"), ["softmax", "softmax"]),
        (Filter(dtype="float16"), ["layernorm"]),
        (Filter(device="cuda"), ["linear", "softmax"]),
        (Filter(status="baseline"), ["gelu"]),
        (Filter(since="2025-01-03", device="cpu"), ["layernorm", "rmsnorm"]),
    ],
)
def test_contents_hold_what_fits(db: Path, asked: Filter, ops: list[str]) -> None:
    with Store.open(db, readonly=True) as store:
        assert [row.op for row in contents.read(store, asked).overview.rows] == ops

"""Where tuning would pay: of winners, and of what a program was seen to call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import gains, study_file
from ksearch.store import Store
from ksearch.store.narrowed import Filter
from tests.browsed import CPU, H200, HALF, SOFTMAX, WIDE

STUDY = """
[[workload]]
op = "softmax"
shape = [64, 256]
calls = 100

[[workload]]
op = "softmax"
shape = [64, 512]
calls = 10

[[workload]]
op = "linear"
shape = [32, 256, 128]

[[workload]]
op = "gelu"
shape = [4, 4]
needs = "a tensor that is not contiguous"
"""


@pytest.fixture(scope="module")
def store(filled: Path) -> Iterator[Store]:
    with Store.open(filled, readonly=True) as opened:
        yield opened


@pytest.fixture
def study(tmp_path: Path) -> study_file.StudyFile:
    (tmp_path / "w.toml").write_text(STUDY)
    return study_file.read(tmp_path / "w.toml")


def test_winners_rank_by_what_lies_between_them_and_the_ceiling(store: Store) -> None:
    known = gains.of_winners(store, Filter())
    assert [(each.workload, each.target, each.gain_us, each.state) for each in known.found] == [
        (WIDE, H200, pytest.approx(30.0), "pytorch"),
        (SOFTMAX, CPU, pytest.approx(2.0), "kernel"),
        (SOFTMAX, H200, pytest.approx(1.0), "kernel"),
        (HALF, H200, pytest.approx(0.5), "kernel"),
    ], "a linear beyond its ceiling has nothing to gain"
    assert known.total_us == pytest.approx(33.5)
    assert gains.of_winners(store, Filter(), 1).total_us == pytest.approx(33.5)
    assert gains.of_winners(store, Filter(op="linear")).found == ()


def test_calls_weigh_and_what_was_not_tuned_is_estimated(store: Store, study: study_file.StudyFile) -> None:
    known = gains.of_study(store, study, Filter(device="cuda"))
    tuned, estimated, beyond = known.found
    assert (tuned.workload, tuned.calls, tuned.gain_us, tuned.state) == (SOFTMAX, 100, 100.0, "kernel")
    assert (estimated.calls, estimated.state) == (10, "untuned")
    assert (estimated.time_us, estimated.ceiling_us) == (12.0, 8.0), "PyTorch's 6 us of half the size"
    assert (beyond.workload.op, beyond.calls, beyond.gain_us) == ("linear", 1, 0.0)
    assert known.left_out == ("gelu 4x4 float32: needs a tensor that is not contiguous",)
    assert known.total_us == pytest.approx(140.0)


def test_each_device_of_the_database_counts_unless_one_is_named(
    store: Store, study: study_file.StudyFile, tmp_path: Path
) -> None:
    everywhere = gains.of_study(store, study, Filter())
    assert {each.target.backend for each in everywhere.found} == {"cpu", "cuda"}
    (tmp_path / "cpu.toml").write_text(f'[study]\ndevice = "cpu"\n{STUDY}')
    on_cpu = gains.of_study(store, study_file.read(tmp_path / "cpu.toml"), Filter())
    assert {each.target for each in on_cpu.found} == {CPU}
    last = on_cpu.found[-1]
    assert (last.workload.op, last.time_us, last.gain_us) == ("linear", None, None), (
        "no linear was tuned there"
    )


def test_a_narrower_question_leaves_out_what_has_no_winner(store: Store, study: study_file.StudyFile) -> None:
    for asked in (Filter(status="winner", device="cuda"), Filter(since="2000-01-01", device="cuda")):
        assert {each.state for each in gains.of_study(store, study, asked).found} == {"kernel"}
    of_softmax = gains.of_study(store, study, Filter(op="softmax", dtype="float32"))
    assert {each.workload.op for each in of_softmax.found} == {"softmax"}
    assert of_softmax.left_out == ()
    assert gains.of_study(store, study, Filter(dtype="float16")).found == ()

"""The plumbing of the benchmarks, on the CPU with few trials: rows, rivals, processes, resuming, the page."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ksearch import backends
from ksearch.errors import UsageError, WorkerError
from ksearch.plan import make_plan
from ksearch.tuner import Report
from ksearch.types import Winner

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))  # child processes inherit it
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def script(name: str) -> Any:
    return importlib.import_module(name)


def test_rows_are_measured_kept_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # its C++ compiler would take longer than all the rest
    bench = script("bench_memory_bound")
    journal = script("_seats").Journal(tmp_path / "rows" / "rows.jsonl")
    workloads = [
        ("softmaxx", (64, 128), "float32"),
        ("softmax", (32, 128), "float32"),
        ("add_rmsnorm", (16, 64), "float32"),
    ]
    bench.measure_all(workloads, journal.append, device="cpu", trials=3, seconds=0.5)
    rows = journal.read()
    assert list(rows) == [script("_bench").label(each) for each in workloads], "the largest first"
    assert rows["softmaxx 64x128 float32"]["error"].startswith("UnknownOp: no op 'softmaxx'")
    for name in ("softmax 32x128 float32", "add_rmsnorm 16x64 float32"):
        row = rows[name]
        assert row["candidates"] == 3
        assert row["of copy_"] == row["copy_ us"] / row["ksearch us"]
        assert row["times torch.compile"] == row["torch.compile us"] / row["ksearch us"]
        assert "times Liger" not in row
        assert "=" in row["config"] or row["config"] == "PyTorch"
    assert bench.missing(workloads, "", rows) == workloads[:1], "what failed is tried again"
    assert bench.missing(workloads, "^add", {}) == workloads[2:]

    arguments = argparse.Namespace(name=tmp_path / "page", commit="none")
    bench.report(arguments, backends.get("cpu").target(), rows, "a command")
    assert len(json.loads((tmp_path / "page.json").read_text())["rows"]) == 3
    page = (tmp_path / "page.md").read_text()
    assert "| softmaxx 64x128 float32 | - |" in page
    assert "; measured 2, failed 1." in page


def test_linear_rows_are_measured_with_their_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    bench, rows = script("bench_linear"), {}
    workloads = [
        bench.Workload("linear_sigmoid_scale_residual", (32, 48, 40)),
        bench.Workload("linear_sigmoid_sum", (16, 33, 17), "bfloat16", prepacked=True),
        bench.Workload("linear_sigmoid_summ", (8, 8, 8)),
    ]
    bench.measure_all(
        workloads, lambda row: rows.update({row["workload"]: row}), device="cpu", trials=3, seconds=0.3
    )
    assert list(rows) == [str(each) for each in workloads], "the largest first"
    assert rows[str(workloads[2])]["error"].startswith("UnknownOp: no op 'linear_sigmoid_summ'")
    for each in workloads[:2]:
        row = rows[str(each)]
        assert each.prepacked or "packing us" not in row
        assert row["times eager"] == row["eager us"] / row["ksearch us"]
        assert row["times torch.compile"] == row["torch.compile us"] / row["ksearch us"]
        assert row["TFLOP/s"] == 2 * math.prod(each.dims) / row["ksearch us"] / 1e6
        assert row["errors"].keys() == {"uniform", "normal", "saturating"}
        for found in row["errors"].values():
            assert found.keys() == ({"output", "linear"} if row["kernel"] != "PyTorch" else {"output"})
            for facts in found.values():
                assert 0 < facts[0] <= facts[1], "the rms is no more than the largest"
                assert bench.ratios(facts) == (facts[0] / facts[2], facts[1] / facts[3])
                assert facts[0] < 0.1 * (10 if "bfloat16" in row["workload"] else 1e-4)
    assert bench.missing(workloads, "", rows) == workloads[2:], "what failed is tried again"
    arguments = argparse.Namespace(name=tmp_path / "page", commit="none")
    bench.report(arguments, backends.get("cpu").target(), rows, "a command")
    page = (tmp_path / "page.md").read_text()
    assert "| linear_sigmoid_sum 16x33x17 bfloat16 prepacked | saturating |" in page
    told = "Errors under `strict` in float32, the op's result" in page
    assert told == (rows[str(workloads[0])]["kernel"] != "PyTorch"), "either may win where calls are so short"
    assert "; measured 2, failed 1." in page


def test_the_linear_suite_is_the_named_and_the_study() -> None:
    bench = script("bench_linear")
    assert len(set(map(str, bench.WORKLOADS))) == len(bench.WORKLOADS) == 3 * 10
    assert [each.dims[1] % 4 for each in bench.PREPACKED] == [0] * 8, (
        "all but 1000x4095x1001 and 257x2050x4097"
    )
    assert not set(map(str, bench.WORKLOADS)) & set(map(str, bench.PREPACKED))
    study = tomllib.loads((SCRIPTS.parent / "studies" / "linear.toml").read_text())
    shapes = {(each["op"], shape) for each in study["workload"] for shape in each["shapes"]}
    assert {(op, "x".join(map(str, dims))) for op, dims in bench.OTHERS} == shapes
    config = {"strategy": "direct", "scheme": "fp16x3", "promote": 256, "tile_n": 128}
    assert bench.kernel_name(config) == "fp16x3/256"
    assert bench.kernel_name({**config, "strategy": "library"}) == "library"
    assert bench.kernel_name({**config, "scheme": "bfloat16", "promote": 0}) == "bfloat16"
    assert bench.kernel_name(None) == "PyTorch"
    assert bench.ratios([0.0, 1.0, 0.0, 0.0]) == (1.0, math.inf)
    row = {"kernel": "fp16x3/256", "config": " ".join(f"{k}={v}" for k, v in config.items())}
    assert bench.shorten(row)["config"] == "tile_n=128"


def test_a_rival_that_fails_or_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rivals = script("_rivals")
    case = rivals.make_case("add_rmsnorm", (16, 64), "float32", "cpu", {"weight": "none"})
    assert len(case.inputs) == 2
    x, residual = case.inputs
    bench = script("bench_memory_bound")
    monkeypatch.setattr(bench, "compiled", lambda case: lambda: (x, x + residual))
    monkeypatch.setattr(bench, "liger", lambda case: lambda: 1 / 0)
    found, facts = bench.peers(case)
    assert found == {}
    assert facts["no torch.compile"].startswith("ArithmeticError: off by")
    assert facts["no Liger"] == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(
        bench, "compiled", lambda case: lambda: case.op.reference(*case.inputs, weight="none")
    )
    monkeypatch.setattr(bench, "liger", lambda case: None)
    found, facts = bench.peers(case)
    assert list(found) == ["torch.compile"]
    assert list(facts) == ["torch.compile ready in s"]


@pytest.mark.parametrize("op", ["softmax", "log_softmax", "gelu", "silu", "residual_add", "mul", "rmsnorm"])
def test_eager_computes_the_op(op: str) -> None:
    rivals = script("_rivals")
    case = rivals.make_case(op, (16, 64), "float32", "cpu")
    for into in (True, False):
        rivals.check(case, rivals.rivals(case, into=into)["eager"])


@pytest.mark.parametrize(("op", "tensors"), [("sigmoid", 2), ("swiglu", 3), ("add_rmsnorm", 4)])
def test_the_copy_moves_the_bytes_of_the_op(op: str, tensors: int) -> None:
    rivals = script("_rivals")
    case = rivals.make_case(op, (16, 64), "bfloat16", "cpu")
    copied = rivals.rivals(case)["copy_"]()
    row = 64 if op == "add_rmsnorm" else 0  # the weight
    assert 2 * copied.numel() == tensors * 16 * 64 + row


def open_toy() -> Callable[[Any], Any]:
    """What the seats of the next test run."""

    def measure(task: str, device: str, database: Path) -> dict[str, Any]:
        if task == "crash":
            os._exit(3)
        if task == "raise":
            raise ValueError("not today")
        return {
            "workload": task,
            "of copy_": 1.0,
            "cache": os.environ["KSEARCH_CACHE_DIR"],
            "cores": len(os.sched_getaffinity(0)),
        }

    return script("_seats").serve(measure)


def test_a_crash_costs_one_row(tmp_path: Path) -> None:
    seats, rows = script("_seats"), {}
    tasks = [(name, name) for name in ("a", "crash", "b", "raise", "c")]
    two = [
        seats.Seat("cpu", None, frozenset([min(os.sched_getaffinity(0))]), tmp_path / str(i)) for i in (0, 1)
    ]
    run = seats.Run("test_bench_scripts:open_toy", tasks, lambda row: rows.update({row["workload"]: row}))
    run.on(two)
    assert rows.keys() == {"a", "b", "c", "crash", "raise"}
    assert rows["crash"]["error"] == "exit status 3"
    assert rows["raise"]["error"] == "ValueError: not today"
    for name in "abc":
        assert rows[name]["cores"] == 1
        assert Path(rows[name]["cache"]).parent in (tmp_path / "0", tmp_path / "1")


def test_no_row_is_begun_too_late_and_none_without_a_process(tmp_path: Path) -> None:
    seats, rows = script("_seats"), []
    seat = seats.Seat("cpu", None, frozenset(os.sched_getaffinity(0)), tmp_path)
    seats.Run("test_bench_scripts:open_toy", [("a", "a")], rows.append, within_s=-1.0).on([seat])
    with pytest.raises(WorkerError, match="no_such_function"):
        seats.Run("test_bench_scripts:no_such_function", [("a", "a")], rows.append).on([seat])
    assert rows == []


def test_seats_share_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seats = script("_seats")
    with pytest.raises(UsageError):
        seats.make_seats("cpu", 2, tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(
        seats, "backends", SimpleNamespace(get=lambda _: SimpleNamespace(target=lambda _: None))
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = seats.make_seats("cuda", 4, tmp_path)
    assert [seat.visible for seat in made] == ["0", "1", "2", "3"]
    assert [len(seat.cores) for seat in made] == [2, 2, 2, 2]
    assert frozenset().union(*(seat.cores for seat in made)) == set(range(8))
    assert len({seat.folder for seat in made}) == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [seat.visible for seat in seats.make_seats("cuda", 2, tmp_path)] == ["5", "7"]


def test_half_a_line_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    journal = script("_seats").Journal(file)
    assert journal.read() == {}
    journal.append({"workload": "a", "x": 1})
    file.write_text(file.read_text() + '{"workload": "b", "x')
    journal.append({"workload": "c"})
    assert list(journal.read()) == ["a", "c"]


def test_the_summary_counts_what_it_says() -> None:
    bench = script("bench_memory_bound")
    names = [bench.name_of(each) for each in bench.WORKLOADS]
    assert len(set(names)) == len(names)
    assert len([each for each in bench.WORKLOADS if each[0] in bench.ROWWISE]) == 4 * 11 * 2 + 3 + 4
    common = {"tuned in s": 8.0, "candidates": 90, "config": "vec=4"}
    rows = {
        "softmax 8192x8192 float32": {
            "of copy_": 0.5,
            "times eager": 2.0,
            "times torch.compile": 0.98,
            **common,
        },
        "rmsnorm 8192x8192 bfloat16": {"of copy_": 0.98, "times eager": 0.995, **common},
        "softmax 256x4096 bfloat16": {"of copy_": 0.1, "times eager": 1.0, **common, "config": "PyTorch"},
        "gelu 8192x8192 float32": {"error": "SIGSEGV"},
        "sum 32768x4096 bfloat16 dim=-1": {"of copy_": 0.9, "times Liger": 3.0, **common},
    }
    text = "\n".join(bench.summarize(rows))
    assert "the 2 rows of softmax, log_softmax, rmsnorm, layernorm with an input of 4 MB" in text
    assert f"geometric mean {math.sqrt(0.5 * 0.98):.3f} (softmax 0.500, rmsnorm 0.980)" in text
    assert "least 0.500, softmax 8192x8192 float32." in text
    assert "the 1 rows of sum, amax, argmax, logsumexp, var, norm, cross_entropy, " in text
    assert "geometric mean 0.900 (sum 0.900); least 0.900, sum 32768x4096 bfloat16 dim=-1." in text
    assert "Times eager: geometric mean 1.258 of 3 rows; ksearch is slower by more than 1 % in 0." in text
    assert "of 1 rows; ksearch is slower by more than 1 % in 1: softmax 8192x8192 float32 (0.980)." in text
    assert "Tuned in 8.0 s with 90 candidates (medians). PyTorch won 1 of 4 rows; " in text
    assert f"Workloads of the suite: {len(names)}; measured 4, failed 1." in text


def test_an_error_without_a_message_is_a_row() -> None:
    def work() -> dict[str, Any]:
        raise AssertionError

    row = script("bench_search_quality").attempt("a workload", work)
    assert row == {"workload": "a workload", "error": "AssertionError: no message"}


def test_the_table_leaves_out_what_is_usual() -> None:
    shorten = script("bench_memory_bound").shorten
    assert shorten("threads=64 rows=1 prefetch=1 load=default vec=8") == "threads=64 prefetch=1 vec=8"
    assert shorten("PyTorch: no winner for x=1 rows=1") == "PyTorch: no winner for x=1 rows=1"


def test_winners_of_several_seeds_race_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race is real; the searches would take longer."""
    bench = script("bench_regret")
    plan = make_plan("softmax", (64, 512), "float32", "cpu", {})
    configs = [*plan.guesses[:2], None]
    asked: list[tuple[int, str]] = []

    def tune(op: str, shape: tuple[int, ...], *, seed: int, db: Path, **more: Any) -> Report:
        asked.append((seed, db.name))
        config, artifact = configs[seed], f"kernel {seed}"
        winner = Winner(plan.workload, plan.target, config, None, config and artifact, 1.0, 2.0, 1.0)
        return Report(winner, 10 + seed, {}, 3.0, str(db))

    monkeypatch.setattr(bench.ksearch, "tune", tune)
    row = bench.measure((("softmax", (64, 512), "float32"), 3, 5, 0.2), "cpu", tmp_path / "bench.db")
    assert asked == [(seed, f"softmax-64x512-float32-{seed}.db") for seed in range(3)]
    assert row["workload"] == "softmax 64x512 float32"
    assert (row["configs"], row["kernels"], row["candidates"]) == (configs, 3, 11)
    assert (row["fastest us"], row["slowest us"]) == (min(row["times us"]), max(row["times us"]))
    assert len(row["times us"]) == 3
    assert 0.0 <= row["regret %"] == 100 * (row["slowest us"] / row["fastest us"] - 1)
    slow = {**row, "fastest us": 100.0, "regret %": 3.0, "workload": "a"}
    lines = bench.summarize([slow, {**slow, "regret %": 0.5, "workload": "b"}])
    assert lines[0] == "Of 2 workloads over 50 us the regret is at most 2 % in 1: more in a (3.0 %)."
    assert lines[1] == "The largest is 3.0 %, of a; the median 1.8 %."
    assert bench.summarize([{**slow, "fastest us": 40.0}]) == ["No workload over 50 us was measured."]

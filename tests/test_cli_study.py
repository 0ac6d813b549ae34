"""`ksearch tune --study`: what is asked of the study, what is printed, and the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksearch import cli, study, tuner
from ksearch.errors import WorkerError
from ksearch.plan import make_plan
from ksearch.tuner import Report
from ksearch.types import Winner

TWO = '[[workload]]\nop = "softmax"\nshapes = ["4x8", "4x16"]\n'
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `ksearch tune`: its exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["tune", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the tuner was asked for; 4x999 fails, another shape is one where PyTorch wins."""
    seen: list[dict[str, Any]] = []

    def tune(op: str, shape: tuple[int, ...], **how: Any) -> Report:
        seen.append({**how, "op": op, "shape": shape})
        if shape == (4, 999):
            raise WorkerError("no worker")
        plan = make_plan(op, shape, how["dtype"], how["device"], how["options"])
        winner = Winner(plan.workload, plan.target, None, None, None, 2.0, 2.0, 1.0)
        return Report(winner, 5, {}, 0.5, str(how["db"]))

    monkeypatch.setattr(tuner, "tune", tune)
    return seen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TWO)
    return path


def test_everything_that_was_asked_reaches_every_search(
    run: Run, asked: list[dict[str, Any]], file: Path, tmp_path: Path
) -> None:
    arguments = ["--device", "cpu", "--trials", "7", "--budget", "10m", "--sampler", "random", "--seed", "3"]
    status, out, err = run("--study", str(file), *arguments, "--jobs", "2", "--db", str(tmp_path / "own.db"))
    assert status == 0
    assert [item["shape"] for item in asked] == [(4, 8), (4, 16)]
    for item in asked:
        assert (item["device"], item["trials"], item["db"]) == ("cpu", 7, tmp_path / "own.db")
        assert (item["sampler"], item["seed"], item["jobs"]) == ("random", 3, 2)
    assert asked[0]["budget_s"] == pytest.approx(300, abs=1)
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["softmax", "4x8", "float32"],
        ["softmax", "4x16", "float32"],
    ]
    assert lines[-1].startswith("study mine: 2 where PyTorch won; geometric mean 1.00x PyTorch")
    assert err.splitlines() == [
        f"{n}/2  softmax {shape} float32: 2.00 us, 1.00x PyTorch, 50 % of the ceiling, 5 candidates, 0.5 s"
        " (PyTorch itself)"
        for n, shape in [(1, "4x8"), (2, "4x16")]
    ]


def test_one_failure_is_status_1_and_stands_under_the_table(
    run: Run, asked: list[dict[str, Any]], file: Path
) -> None:
    file.write_text(TWO.replace("4x8", "4x999"))
    status, out, _ = run("--study", str(file), "--device", "cpu")
    assert status == 1
    assert "softmax 4x999 float32: failed: no worker" in out
    assert len(asked) == 2


def test_what_needs_something_is_no_failure(run: Run, asked: list[dict[str, Any]], file: Path) -> None:
    file.write_text(f'{TWO}[[workload]]\nop = "linear"\nshape = [1]\nneeds = "linear"')
    assert run("--study", str(file), "--device", "cpu")[0] == 0


def test_as_json_it_is_one_object_and_nothing_else(run: Run, asked: list[dict[str, Any]], file: Path) -> None:
    status, out, err = run("--study", str(file), "--device", "cpu", "--json")
    content = json.loads(out)
    assert (status, err) == (0, "")
    assert content["study"] == "mine"
    assert [row["state"] for row in content["workloads"]] == ["pytorch", "pytorch"]


def test_quiet_is_one_line_a_workload(run: Run, asked: list[dict[str, Any]], file: Path) -> None:
    status, out, err = run("--study", str(file), "--device", "cpu", "-q")
    assert (status, out.count("\n"), err) == (0, 2, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Missing argument 'OP', or --study FILE"),
        (["--shape", "2x3"], "Missing argument 'OP', or --study FILE"),
        (["softmax"], "Missing option '--shape'"),
        (["softmax", "--shape", "2x3", "--again"], "--again is for a study"),
        (["softmax", "--study", "llm"], "leave out OP, or --study"),
        (
            ["softmax", "--shape", "2x3", "--dtype", "float32", "--option", "a=1", "--study", "llm"],
            "leave out OP, --shape, --dtype, --option, or --study",
        ),
        (
            ["--study", "nope"],
            "no study 'nope': name a TOML file, or one that ships: kernelbench, linear, llm, named",
        ),
    ],
)  # fmt: skip
def test_a_workload_or_a_study_and_not_both(
    run: Run, asked: list[dict[str, Any]], arguments: list[str], expected: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert expected in err
    assert not asked


def test_the_mistakes_of_a_file_are_one_line_before_anything_starts(
    run: Run, asked: list[dict[str, Any]], file: Path
) -> None:
    file.write_text(f'{TWO}[[workload]]\nop = "sofmax"\nshape = [1]\n[[workload]]\nop = "softmax"\n')
    status, out, err = run("--study", str(file), "--device", "cpu")
    assert (status, out) == (2, "")
    assert err.startswith(f"ksearch: error: {file}: (1) [[workload]] 2, op: no op 'sofmax'")
    assert "(2) [[workload]] 3, shape: is missing" in err
    assert err.count("\n") == 1
    assert not asked


def test_the_help_names_the_studies_that_ship_and_the_exit_status(run: Run) -> None:
    _, out, _ = run("--help")
    for path in study.shipped_folder().glob("*.toml"):
        assert path.stem in out
    assert "exit status of a study is 0" in " ".join(out.split())

"""`ksearch list`, `show`, `trials`, `compare`, `top`, `ops` over a small database; bad input among it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ksearch import database
from ksearch.cli import printing
from ksearch.store import Store
from tests import browsed

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def db(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is the default database."""
    monkeypatch.setenv("KSEARCH_DB", str(filled))
    return filled


def rows(result: tuple[int, str, str]) -> list[dict[str, Any]]:
    status, out, err = result
    assert (status, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def table(result: tuple[int, str, str]) -> list[dict[str, str]]:
    status, out, err = result
    assert (status, err) == (0, "")
    return list(csv.DictReader(io.StringIO(out)))


def said(result: tuple[int, str, str], status: int = 0) -> str:
    """The one line on stderr, beside nothing on stdout."""
    assert result[:2] == (status, ""), result
    assert result[2].count("\n") == 1, result[2]
    return result[2].removeprefix("ksearch: ").removeprefix("error: ").rstrip("\n")


# ---- list -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("narrowed", "times"),
    [
        (("--since", "7d"), [3.0, 5.0, 90.0]),
        (("--since", "12h"), [90.0]),
        (("--since", "6w"), [3.0, 5.0, 10.0, 90.0]),
        (("--since", "2000-01-01", "--dtype", "float16"), [3.0]),
        (("--status", "baseline"), [90.0]),
        (("--status", "winner", "--device", "cpu"), [10.0]),
        (("--op", "linear"), [20.0]),
        (("--sort", "age", "--limit", "1"), [90.0]),
        (("--sort", "time", "--limit", "2"), [90.0, 20.0]),
        (("--since", "0d"), []),
    ],
)
def test_a_list_is_narrowed_sorted_and_cut(
    run: Run, db: Path, narrowed: tuple[str, ...], times: list[float]
) -> None:
    found = [row["time_us"] for row in rows(run("list", "--json", *narrowed))]
    assert (found if "--sort" in narrowed else sorted(found)) == times
    assert [float(row["time_us"]) for row in table(run("list", "--csv", *narrowed))] == found


def test_a_table_has_so_many_lines_unless_more_are_asked_for(
    run: Run, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing, "_MOST", 4)
    status, out, err = run("list")
    assert (status, len(out.splitlines())) == (0, 1 + 4)
    assert err == "ksearch: these are 4 of 5 winners; --limit 0 lists all\n"
    assert [len(run("list", "--limit", n)[1].splitlines()) for n in (0, 2, 5)] == [6, 3, 6]
    assert run("list", "--limit", 5)[2] == ""
    assert len(rows(run("list", "--json"))) == 5


@pytest.mark.parametrize("text", ["yesterday", "7", "7y", "-1d", "2026-13-01", "99999999w", ""])
def test_an_age_that_is_none_says_how_to_write_one(run: Run, db: Path, text: str) -> None:
    error = said(run("list", "--since", text), status=2)
    assert f"{text!r} is no age: write 7d, 12h, 30m, 2w, or a date such as 2026-11-01" in error


def test_nothing_found_says_what_there_is(run: Run, db: Path) -> None:
    none = f"none of the 5 winners in {db} is as asked; "
    asked = "there is no op sofmax: did you mean softmax or log_softmax"
    assert said(run("list", "--op", "sofmax")).startswith(none + asked)
    assert said(run("list", "--device", "a100")).endswith(
        "is as asked; its ops: gelu, linear, softmax; its devices: NVIDIA H200, Some CPU [2 threads]"
    )
    assert run("list", "--op", "sofmax", "--json") == (0, "[]\n", "")
    assert run("list", "--op", "sofmax", "--csv") == (0, "", "")


def test_a_word_that_is_none_is_refused_with_those_there_are(run: Run, db: Path) -> None:
    assert "'float32', 'float16', 'bfloat16'" in said(run("list", "--dtype", "float64"), status=2)
    assert "'winner', 'baseline'" in said(run("list", "--status", "passed"), status=2)
    error = said(run("trials", "softmax", "--shape", "64x256", "--status", "winner"), status=2)
    assert "'failed', 'passed'" in error


# ---- databases without winners --------------------------------------------------------------------------


def test_an_empty_database_says_how_to_fill_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    Store.open(path).close()
    assert said(run("list", "--db", path)) == (
        f"no winners in {path}; to get one: ksearch tune OP --shape NxM"
    )
    assert "it has no winners yet; to get one: ksearch tune" in said(run("top", "--db", path))
    for command in ("show", "trials", "compare"):
        error = said(run(command, "softmax", "--shape", "4x8", "--db", path), status=2)
        assert "for softmax 4x8 in " in error
        assert error.endswith("to get one: ksearch tune softmax --shape 4x8")


def test_searches_without_a_winner_are_told_of(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "begun.db"
    with Store.open(path) as store:
        store.record(
            browsed.BEGUN, browsed.CPU, "s", 0, {}, browsed.Outcome(browsed.Status.WRONG, message="no")
        )
    assert "candidates were evaluated: gelu 64x256 float32 approximate=none (1 wrong); the same" in said(
        run("list", "--db", path)
    )


def test_of_a_search_in_which_all_failed_the_candidates_are_shown(run: Run, db: Path) -> None:
    status, out, err = run("trials", "gelu", "--shape", "64x256")
    assert (status, err) == (0, "ksearch: none of 3 candidates passed: 2 wrong, 1 timeout\n")
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["wrong", "wrong", "timeout"]
    error = said(run("show", "gelu", "--shape", "64x256"), status=2)
    assert (
        "; 3 candidates of gelu 64x256 float32 approximate=none were evaluated on Some CPU [2 thre" in error
    )
    assert "(2 wrong, 1 timeout; ksearch trials shows them), and the same ksearch tune goes on" in error


def test_a_winner_out_of_a_bundle_has_no_candidates(run: Run, db: Path) -> None:
    status, out, err = run("trials", "linear", "--shape", "32x256x128")
    assert (status, out.count("\n")) == (0, 1)
    assert "the winner came without them, out of a bundle" in err
    assert rows(run("trials", "linear", "--shape", "32x256x128", "--json")) == []


def test_a_newer_database_is_refused_by_each_command(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO ksearch_schema VALUES (?, '2030')", (database.SCHEMA_VERSION + 1,))
    for command in (("list",), ("top",), ("show", "a", "--shape", "2"), ("compare", "a", "--shape", "2")):
        assert "written by a newer ksearch" in said(run(*command, "--db", path), status=1)


# ---- show, trials ---------------------------------------------------------------------------------------


def test_an_unknown_op_or_shape_names_the_nearest(run: Run, db: Path) -> None:
    error = said(run("show", "sofmax", "--shape", "64x256"), status=2)
    assert "there is no op sofmax: did you mean softmax or log_softmax" in error
    error = said(run("show", "softmax", "--shape", "8x65000"), status=2)
    assert "; it has softmax 8x65536 float32, softmax 64x256" in error
    assert " on NVIDIA H200; softmax 64x256 float32 on Some CPU [2 threads]; to get one" in error
    assert error.endswith("; to get one: ksearch tune softmax --shape 8x65000")
    error = said(run("show", "gelu", "--shape", "9x9"), status=2)
    assert "it has" not in error


def test_more_than_a_few_others_are_counted(run: Run, tmp_path: Path) -> None:
    with Store.open(tmp_path / "k.db") as store:
        for rows_ in range(1, 13):
            found = browsed.winner(browsed.Workload("mine", (rows_, 8)), browsed.CPU, (1.0, 1.0, 1.0), 1)
            store.promote(found, source=None, binary=None, environment={})
    error = said(run("show", "mine", "--shape", "14x8", "--db", tmp_path / "k.db"), status=2)
    assert "; it has mine 12x8 float32, mine 11x8 float32" in error
    assert " and 4 more; to get one" in error


def test_show_as_csv_is_one_line_a_winner(run: Run, db: Path) -> None:
    shown = table(run("show", "softmax", "--shape", "64x256", "--csv"))
    assert [(row["shape"], row["dtype"], row["trials"]) for row in shown] == [
        ("64x256", "float16", "0"), ("64x256", "float32", "3"), ("64x256", "float32", "0"),
    ]  # fmt: skip
    assert json.loads(shown[0]["config"]) == {"block": 128, "vec": 8, "math": "exact"}


@pytest.mark.parametrize(
    ("narrowed", "numbers"),
    [
        ((), [0, 1, 2]),
        (("--status", "passed"), [1]),
        (("--status", "failed"), [0, 2]),
        (("--status", "wrong", "--limit", "1"), [0]),
        (("--since", "1h"), [0, 1, 2]),
        (("--since", (datetime.now(UTC) + timedelta(days=2)).date()), []),
    ],
)
def test_trials_are_narrowed(run: Run, db: Path, narrowed: tuple[object, ...], numbers: list[int]) -> None:
    arguments = ("trials", "softmax", "--shape", "64x256", *narrowed)
    assert [row["number"] for row in rows(run(*arguments, "--json"))] == numbers
    assert len(table(run(*arguments, "--csv"))) == len(numbers)


def test_trials_that_are_not_shown_are_told_of(run: Run, db: Path) -> None:
    shape = ("trials", "softmax", "--shape", "64x256")
    assert run(*shape, "--limit", "1")[2] == "ksearch: these are 1 of 3 candidates; --limit 0 lists all\n"
    assert "none of 3 candidates is as asked: 2 wrong, 1 passed" in run(*shape, "--status", "timeout")[2]


# ---- compare --------------------------------------------------------------------------------------------


def lines_of(out: str) -> dict[str, list[str]]:
    """Each fact of a comparison: a star where it differs, and the values."""
    split = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    return {name: [star, *values] for star, name, *values in (each for each in split if len(each) > 3)}


def test_two_winners_stand_side_by_side(run: Run, db: Path) -> None:
    shapes = ("--shape", "64x256", "--shape", "8x65536")
    status, out, err = run("compare", "softmax", *shapes, "--dtype", "float32", "--device", "h200")
    assert (status, err) == (0, "")
    facts = lines_of(out)
    assert facts["shape"] == ["*", "64x256", "8x65536"]
    assert facts["dtype"] == ["", "float32", "float32"]
    assert facts["us"] == ["*", "5.00", "90.00"]
    assert facts["times the first"] == ["*", "1.00x", "0.06x"]
    assert facts["% of ceiling"] == ["*", "80 %", "67 %"]
    assert facts["95 % interval"] == ["*", "1.10x to 1.30x", "0.90x to 1.10x"]
    assert facts["runs"] == ["*", "kernel", "PyTorch"]
    assert facts["block"] == ["*", "256", "-"]
    assert facts["measured under"] == [
        "",
        "torch 2.13.0, device NVIDIA H200",
        "torch 2.13.0, device NVIDIA H200",
    ]


def test_what_is_given_twice_is_for_each_in_turn(run: Run, db: Path) -> None:
    twice = ("--dtype", "float32", "--dtype", "float16", "--device", "h200")
    content = json.loads(run("compare", "softmax", "--shape", "64x256", *twice, "--json")[1])
    assert [row["dtype"] for row in content["winners"]] == ["float32", "float16"]
    assert content["times_the_first"] == pytest.approx([1.0, 5 / 3])
    assert content["config_differs"] == {"block": [256, 128], "vec": [4, 8]}
    assert content["config_same"] == {"math": "exact"}
    devices = ("--device", "cuda", "--device", "cpu", "--dtype", "float32")
    content = json.loads(run("compare", "softmax", "--shape", "64x256", *devices, "--json")[1])
    assert [row["backend"] for row in content["winners"]] == ["cuda", "cpu"]
    assert content["config_differs"]["simd"] == [None, 32]


def test_one_shape_compares_all_there_is_of_it(run: Run, db: Path) -> None:
    facts = table(run("compare", "softmax", "--shape", "64x256", "--csv"))
    device = next(row for row in facts if row["name"] == "device")
    assert device == {
        "of": "workload",
        "name": "device",
        "differs": "true",
        "winner_1": "NVIDIA H200 (sm_90)",
        "winner_2": "Some CPU [2 threads] (x86_64-avx2)",
        "winner_3": "NVIDIA H200 (sm_90)",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--shape", "8x65536"),
            "there is one winner as asked, softmax 8x65536 float32 on NVIDIA H200: name",
        ),
        (("--shape", "64x256", "--shape", "8x65536"), "64x256 means 3 winners: softmax 64x256 float16 on"),
        (("--shape", "64x256", "--shape", "9x9", "--dtype", "float16"), "no winner for softmax 9x9 float16"),
        (
            (
                "--shape",
                "2",
                "--shape",
                "3",
                "--dtype",
                "float16",
                "--dtype",
                "float32",
                "--dtype",
                "float32",
            ),
            "--shape is given 2 times, and another 3 times",
        ),
        ((), "Missing option '--shape'"),
    ],
)
def test_what_cannot_be_compared_says_why(
    run: Run, db: Path, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in said(run("compare", "softmax", *arguments), status=2)


# ---- top ------------------------------------------------------------------------------------------------


def test_top_lists_what_is_farthest_from_its_ceiling(run: Run, db: Path) -> None:
    status, out, err = run("top")
    assert (status, err) == (0, "")
    first, second, *_ = [re.split(r"\s{2,}", line) for line in out.splitlines()[1:]]
    assert first == ["softmax", "8x65536", "float32", "strict", "NVIDIA H200", "1", "90.00", "60.00", "67 %",
                     "30.00", "89.6 %", "PyTorch won"]  # fmt: skip
    assert second[-3:] == ["2.00", "6.0 %", "kernel"]
    assert [row["gain_us"] for row in rows(run("top", "--json", "--device", "cpu"))] == [pytest.approx(2.0)]
    assert run("top", "--limit", "1")[2] == "ksearch: these are 1, of 33.50 us in all; --limit 0 lists all\n"
    assert "of its 5 winners none that is asked for is below its ceiling" in said(
        run("top", "--op", "linear")
    )
    assert "did you mean softmax" in said(run("top", "--op", "sofmax"))


def test_top_of_a_study_counts_its_calls(run: Run, db: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    entry = '[[workload]]\nop = "{}"\nshape = {}\ncalls = {}\n'
    shapes = [("softmax", [64, 256], 100), ("softmax", [64, 512], 7), ("linear", [4, 8, 16], 3)]
    path.write_text(
        "".join(entry.format(*each) for each in shapes) + entry.format("gelu", [2, 2], 1) + 'needs = "x"'
    )
    found = table(run("top", path, "--csv", "--device", "cuda", "--op", "softmax"))
    assert [(row["shape"], row["calls"], row["state"]) for row in found] == [
        ("64x256", "100", "kernel"), ("64x512", "7", "untuned"),
    ]  # fmt: skip
    status, out, err = run("top", path, "--device", "cpu")
    assert (status, len(out.splitlines())) == (0, 4)
    assert "for 1 nothing comparable was measured on that device" in err
    assert "left out: gelu 2x2 float32: needs x" in err
    assert "no study 'absent'" in said(run("top", "absent"), status=2)


# ---- ops ------------------------------------------------------------------------------------------------


def test_ops_lists_families_with_their_parameters(run: Run) -> None:
    out = run("ops", "--device", "cpu")[1]
    families = [line.split(maxsplit=3) for line in out.partition("\n\n")[2].splitlines()]
    (rowwise,) = [line for line in families if line[0] == "rowwise"]
    assert rowwise[1:3] == ["cpu", "cpu/rowwise.cpp.j2"]
    assert {"simd", "unroll", "threads"} <= set(rowwise[3].split(", "))
    softmax = next(row for row in rows(run("ops", "--json")) if row["op"] == "softmax")
    assert softmax["families"]["cuda"] == {"family": "rowwise", "template": "cuda/rowwise.cu.j2"}


def test_one_op_has_all_that_its_search_may_choose_from(run: Run) -> None:
    shape = ("--shape", "8x64", "--dtype", "bfloat16")
    content = json.loads(run("ops", "softmax", *shape, "--device", "cpu", "--json")[1])
    (family,) = content["families"]
    assert (content["op"], family["workload"]) == ("softmax", "softmax 8x64 bfloat16")
    assert family["parameters"]["keep"] == [True, False]
    assert 0 < family["configs"] <= 1000
    out = run("ops", "softmax", *shape)[1]
    assert f"cpu: family rowwise (cpu/rowwise.cpp.j2), {family['configs']} configs for softmax 8x64" in out
    assert "cuda: family rowwise" in out
    cells = table(run("ops", "layernorm", *shape, "--device", "cpu", "--csv"))
    assert {row["parameter"] for row in cells} >= {"simd", "threads"}


def test_ops_of_what_is_none(run: Run) -> None:
    assert "no op 'sofmax'; did you mean softmax" in said(run("ops", "sofmax"), status=2)
    assert "--shape is for one op" in said(run("ops", "--shape", "2x2"), status=2)
    assert "is too short: linear starts" in said(run("ops", "linear", "--shape", "2x2"), status=2)


# ---- the terminal ---------------------------------------------------------------------------------------


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """What the command writes where stdout is a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "ksearch", *arguments]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # so Linux says that the other end is closed
        while piece := os.read(ours, 65536):
            written += piece
    os.close(ours)
    assert process.wait() == 0
    return written.decode().replace("\r\n", "\n")


def test_a_terminal_gets_what_fits_it_and_colours_that_it_can_refuse(run: Run, db: Path) -> None:
    out = on_a_terminal("top", COLUMNS="60")
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert "\x1b[33m" in out
    assert max(map(len, plain.splitlines())) <= 60
    assert "policy: strict; calls: 1; a wider terminal" in plain
    assert "\x1b[33m" not in on_a_terminal("top", COLUMNS="60", NO_COLOR="1")
    piped = run("top")[1]
    assert "\x1b" not in piped
    assert max(map(len, piped.splitlines())) > 100


def test_what_only_reads_the_database_does_not_import_torch(db: Path) -> None:
    """Which takes 1.5 s."""
    place = ["softmax", "--shape", "64x256"]
    commands = [["list"], ["show", *place], ["trials", *place], ["compare", *place], ["top"]]
    code = f"""
import sys
from ksearch import cli
statuses = [cli.main(arguments) for arguments in {commands!r}]
print(statuses, {{"torch", "optuna"}} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[0, 0, 0, 0, 0] set()\n"

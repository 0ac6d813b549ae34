from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ksearch import cli
from ksearch.pages import contents
from ksearch.store import Store
from tests.pages import results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(results.make(tmp_path_factory.mktemp("cli_report") / "results.db"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `ksearch report`: its exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(("report", *arguments))
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_report_is_written_as_its_name_says(run: Run, db: str, tmp_path: Path) -> None:
    for name, start in (("report.html", "<!doctype html>"), ("report.md", "## results.db: op gelu\n")):
        status, out, err = run("-o", str(tmp_path / name), "--op", "gelu", "--db", db)
        assert (status, err) == (0, "")
        assert f"written to {tmp_path / name}" in out
        assert (tmp_path / name).read_text().startswith(start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_markdown_goes_to_stdout_where_no_file_is_named(run: Run, db: str) -> None:
    status, out, _ = run("--markdown", "--device", "cuda", "--db", db)
    assert status == 0
    assert out.startswith("## results.db: device cuda\n")
    assert out.count("\n| ") == 3


def test_json_says_what_was_written(run: Run, db: str, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    status, out, _ = run("-o", str(path), "--json", "--db", db)
    said = {"report": str(path), "workloads": 7, "bytes": path.stat().st_size, "db": db}
    assert (status, json.loads(out)) == (0, said)


def test_without_a_file_it_asks_where_to_write(run: Run, db: str) -> None:
    for arguments in (("--db", db), ("--markdown", "--json", "--db", db)):
        status, _, err = run(*arguments)
        assert status == 2
        assert "Say where to write" in err


def test_a_file_that_cannot_be_written_is_one_line(run: Run, db: str, tmp_path: Path) -> None:
    status, out, err = run("-o", str(tmp_path / "no" / "report.md"), "--db", db)
    assert (status, out) == (2, "")
    assert err == f"ksearch: error: cannot write {tmp_path}/no/report.md: No such file or directory\n"


def test_what_was_there_stays_where_a_report_cannot_be_finished(
    run: Run, db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.md"
    path.write_text("yesterday's")
    monkeypatch.setattr(contents.views, "workload_view", lambda *_, **__: 1 / 0)
    status, _, _ = run("-o", str(path), "--db", db)
    assert status == 1
    assert [each.read_text() for each in tmp_path.iterdir()] == ["yesterday's"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--op", "sofmax"), "fits op sofmax; did you mean softmax?"),
        (("--op", "zzz"), "fits op zzz; it has gelu, layernorm, linear, my_op, rmsnorm, softmax"),
        (("--op", "gelu", "--device", "cuda"), "fits op gelu, device cuda"),
    ],
)
def test_what_fits_nothing_is_said_with_what_there_is(
    run: Run, db: str, tmp_path: Path, asked: tuple[str, ...], said: str
) -> None:
    status, out, err = run("-o", str(tmp_path / "report.html"), *asked, "--db", db)
    assert (status, out) == (2, "")
    assert err == f"ksearch: error: nothing in {db} {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_too_many_workloads_are_refused(
    run: Run, db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MOST", 6)
    status, _, err = run("-o", str(tmp_path / "report.html"), "--db", db)
    assert status == 2
    assert "has 7 such workloads, and a report holds 6: narrow them with --op" in err


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_an_empty_database_gives_a_report_that_says_so(run: Run, tmp_path: Path, name: str) -> None:
    Store.open(tmp_path / "empty.db").close()
    status, out, _ = run("-o", str(tmp_path / name), "--db", str(tmp_path / "empty.db"))
    assert status == 0
    assert out.startswith("nothing was tuned here yet, written to ")
    assert "othing was tuned here yet" in (tmp_path / name).read_text()


def test_failures_alone_give_a_report_with_the_reasons(run: Run, tmp_path: Path) -> None:
    with Store.open(tmp_path / "failed.db") as store:
        results.add_search(store, results.FAILED, results.CPU, failing=24)
    status, out, _ = run("--markdown", "--db", str(tmp_path / "failed.db"))
    assert status == 0
    assert "no candidate passed; 24 candidates in the database, of which failed 16 wrong" in out


def test_a_missing_and_a_newer_database_are_one_line(run: Run, db: str, tmp_path: Path) -> None:
    status, _, err = run("--markdown", "--db", str(tmp_path / "none.db"))
    assert status == 1
    assert "no database at" in err
    with closing(sqlite3.connect(tmp_path / "newer.db")) as newer, closing(sqlite3.connect(db)) as now:
        now.backup(newer)
        newer.execute("INSERT INTO ksearch_schema (version, applied_at) VALUES (999, '')")
        newer.commit()
    status, _, err = run("--markdown", "--db", str(tmp_path / "newer.db"))
    assert status == 1
    assert "newer ksearch" in err
    assert err.count("\n") == 1


def test_without_plotly_html_says_how_to_get_it_and_markdown_needs_none(
    run: Run, db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    status, _, err = run("-o", str(tmp_path / "report.html"), "--db", db)
    assert status == 1
    assert err == "ksearch: error: a report in HTML needs plotly: pip install 'ksearch[report]'\n"
    assert run("--markdown", "--db", db)[0] == 0

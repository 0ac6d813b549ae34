from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ksearch import backends, cli, doctor, env
from ksearch.store import Store


def by_name(diagnosis: doctor.Diagnosis) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in diagnosis.findings}


@pytest.fixture
def fresh_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends look for their compilers again."""
    backends.get.cache_clear()


def test_this_machine_can_tune_and_every_lack_has_a_remedy() -> None:
    diagnosis = doctor.examine(env.database_path())
    found = by_name(diagnosis)
    assert "cpu" in diagnosis.backends
    assert found["C++ compiler"].state == "ok"
    assert "OpenMP" in found["C++ compiler"].detail
    assert found["torch"].state == "ok"
    assert [finding for finding in diagnosis.findings if finding.state == "missing" and not finding.fix] == []


def test_without_a_compiler_the_remedy_is_named_and_the_status_is_1(
    fresh_backends: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("KSEARCH_CXX", raising=False)
    compiler = by_name(doctor.examine(env.database_path()))["C++ compiler"]
    assert (compiler.state, compiler.fix) == ("missing", "apt-get install g++")
    monkeypatch.setattr(doctor, "_gpus", list)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "apt-get install g++" in out
    assert "can tune on: nothing yet" in out


def test_a_compiler_that_is_there_but_does_not_work_is_missing(
    fresh_backends: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'c++ 1.0' && exit 0\n"
        "echo 'x.cpp:1:1: error: no' >&2; exit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("KSEARCH_CXX", str(broken))
    compiler = by_name(doctor.examine(env.database_path()))["C++ compiler"]
    assert compiler.state == "missing"
    assert "KSEARCH_CXX" in compiler.fix


def test_the_database_is_described_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    assert "the first tune makes it" in by_name(doctor.examine(path))["database"].detail
    assert not path.exists()
    with Store.open(path):
        pass
    database = by_name(doctor.examine(path))["database"]
    assert database.state == "ok"
    assert "0 winners" in database.detail


def test_a_database_of_other_tables_can_be_tuned_into(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE studies (study_id INTEGER)")
    assert by_name(doctor.examine(path))["database"].state == "ok"


@pytest.mark.parametrize("place", ["a folder", "below a file", "no database"])
def test_a_database_that_cannot_be_used_is_missing(tmp_path: Path, place: str) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear database, " * 100)
    path = {"a folder": tmp_path, "below a file": letter / "k.db", "no database": letter}[place]
    database = by_name(doctor.examine(path))["database"]
    assert database.state == "missing"
    assert "--db" in database.fix


def test_a_database_of_a_newer_ksearch_says_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    with Store.open(path):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE ksearch_schema SET version = version + 99")
    database = by_name(doctor.examine(path))["database"]
    assert (database.state, database.fix) == ("missing", "upgrade ksearch")


def test_the_cache_is_weighed() -> None:
    folder = env.cache_dir() / "artifacts"
    folder.mkdir(parents=True)
    (folder / "kernel.so").write_bytes(b"x" * 2_000_000)
    assert "1 file, 2.0 MB" in by_name(doctor.examine(env.database_path()))["cache"].detail


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor", "--json"])
    row = json.loads(capsys.readouterr().out)
    assert row["can_tune"] is (status == 0)
    assert {finding["name"] for finding in row["findings"]} >= {"Python", "torch", "C++ compiler", "database"}
    assert {finding["state"] for finding in row["findings"]} <= {"ok", "absent", "missing"}

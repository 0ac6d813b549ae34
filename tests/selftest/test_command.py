"""`ksearch selftest`: the table, the one object of `--json`, the exit status, and what is kept for `tune`."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from ksearch import cli, env
from ksearch.plan import make_plan
from ksearch.selftest import alone, gate
from ksearch.selftest.alone import Tried
from ksearch.selftest.mutants import descriptions
from ksearch.store import Kill, KillTable, Store

SMALL = ["selftest", "relu", "--shape", "40x64", "--device", "cpu"]


def tried(verdicts: dict[str, str]) -> Tried:
    plan = make_plan("relu", (40, 64), "float32", "cpu", {})
    kills = tuple(Kill(fault, verdict, "in its words") for fault, verdict in verdicts.items())
    table = KillTable("relu", plan.target.key, gate.facts(plan), kills)
    return Tried(plan.workload, plan.target.device, table)


def test_a_check_that_finds_all_is_told_kept_and_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told)[:5] == ["op", "device", "mutants", "killed", "survivors"]
    assert (told["op"], told["survivors"]) == ("relu", [])
    assert told["mutants"] == told["killed"] == 19
    (workload,) = told["workloads"]
    assert (workload["shape"], workload["dtype"]) == ([40, 64], "float32")
    assert [each["fault"] for each in workload["faults"]] == list(descriptions())
    plan = make_plan("relu", (40, 64), "float32", "cpu", {})
    with Store.open(env.database_path()) as store:
        table = store.kills("relu", plan.target, gate.facts(plan))
    assert table is not None
    assert table.killed == 19


def test_a_fault_that_is_not_found_is_told_not_kept_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tried({"zeros": "wrong", "lost tail": "passed", "missing barrier": ""})

    def scripted(*_: object, tell: object = None, **__: object) -> list[Tried]:
        assert callable(tell)
        tell(found)
        return [found]

    monkeypatch.setattr(alone, "selftest", scripted)
    assert cli.main([*SMALL, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["mutants"], told["killed"], told["survivors"]) == (2, 1, ["lost tail"])
    assert cli.main(SMALL) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("lost tail") and "SURVIVED" in line for line in lines)
    assert any(line.startswith("missing barrier") and "does not apply" in line for line in lines)
    assert lines[-1] == "1 of 2 planted faults found; NOT FOUND: lost tail (relu 40x64 float32)"
    with closing(sqlite3.connect(env.database_path())) as connection:
        assert connection.execute("SELECT count(*) FROM kill_tables").fetchone() == (0,)


def test_what_cannot_be_asked_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--shape", "4x4"]) == 2
    assert "--shape, --prepacked and --option are for a named OP" in capsys.readouterr().err
    assert cli.main(["selftest", "sofmax"]) == 2
    assert "did you mean softmax" in capsys.readouterr().err

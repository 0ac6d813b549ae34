"""The benchmark of the search, with tiny numbers on the CPU: for real once, then again from its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bench(*arguments: object) -> str:
    command = [sys.executable, ROOT / "scripts/bench_search_quality.py", *arguments]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_measures_keeps_and_replays(tmp_path: Path) -> None:
    few = ["--seeds", 2, "--budgets", 2, 4]
    table, name = tmp_path / "t.jsonl.gz", tmp_path / "quality"
    one = ["--device", "cpu", "--only", "sigmoid", "32x128", "float32", "--points", 6]
    bench(*one, *few, "--table", table, "--name", name)
    (row,) = json.loads(name.with_suffix(".json").read_text())["rows"]
    assert row["workload"] == "sigmoid 32x128 float32"
    assert 6 <= row["tried"] <= 6 + 4 * 4
    assert row["best us"] > 0
    for sampler in ("tpe", "random"):
        assert 0 < row[f"{sampler} 2, least"] <= row[f"{sampler} 2"] <= 1
        assert row[f"{sampler} 2"] <= row[f"{sampler} 4"] * 1.0001, "more trials are no worse"
    assert (row["stops after"], row["at the stop"]) == (4, row["tpe 4"]), "too short to end by itself"
    again = bench("--replay", table, *few)
    assert again == bench("--replay", table, *few), "the same table and seeds give the same searches"
    assert f"| {row['tried']} | {row['tried']} | 0 |" in again


def test_a_workload_that_fails_is_a_row(tmp_path: Path) -> None:
    name = tmp_path / "quality"
    bench("--device", "cpu", "--only", "softmaxx", "32x128", "float32", "--name", name)
    (row,) = json.loads(name.with_suffix(".json").read_text())["rows"]
    assert row["error"].startswith("UnknownOp: no op 'softmaxx'")

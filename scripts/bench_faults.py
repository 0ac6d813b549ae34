"""What ksearch survives, and what a long search leaves behind: `python scripts/bench_faults.py`.

Runs the tests of faults with real processes and signals, and makes a row of what became of each; then one
search of many candidates, some of which crash, and notes what is held meanwhile and in the end.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import _leaks
from _bench import ROOT, parser, save, table

from ksearch import backends


def faults(device: str, within_s: float) -> list[dict[str, Any]]:
    """One row for each fault that a test told of, and one for each test that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "tests/faults", "-q", "-p", "no:cacheprovider"]
        command += ["-m", "gpu" if device == "cuda" else "not gpu", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False, timeout=within_s)
        cases = list(ElementTree.parse(report).iter("testcase"))
    return [row for case in cases if (row := _row(case)) is not None]


def _row(case: ElementTree.Element) -> dict[str, Any] | None:
    facts = {each.get("name"): str(each.get("value")) for each in case.iter("property")}
    failed = case.find("failure") is not None or case.find("error") is not None
    if not failed and "fault" not in facts:
        return None
    return {
        "fault": facts.get("fault", str(case.get("name"))),
        "what becomes of it": "NOT SURVIVED" if failed else _short(facts["outcome"]),
        "s": float(case.get("time", 0.0)),
    }


def _short(text: str) -> str:
    """Without the folders of files, which are the test's own, and what would end a cell of the table."""
    return re.sub(r"/[^ ]*/([^/ ]+)", r"\1", text).replace("|", "/")


def grown(rows: list[dict[str, Any]]) -> str:
    """What the second half of the search added, in which no candidate failed."""
    during = [row for row in rows if row["when"].startswith("after")]
    middle, last = during[len(during) // 2 - 1], during[-1]
    first, end = rows[0], rows[-1]
    figures = ", ".join(
        f"{name} {middle[name]:.1f} to {last[name]:.1f}"
        for name in ("MB", "worker MB", "compiler MB", "files", "worker files", "processes")
    )

    def both(name: str) -> str:
        return f"{name} {first[name]} and {end[name]}"

    return (
        f"- From candidate {middle['when'].split()[1]} to {last['when'].split()[1]}: {figures}.\n"
        f"- Before and in the end: {both('files')}, {both('processes')}, {both('temporary folders')}.\n"
        f"- {end['candidates']} candidates in {end['s']:.0f} s, of which failed: "
        + (", ".join(f"{number} {status}" for status, number in sorted(end["failed"].items())) or "none")
        + "."
    )


def main(arguments: argparse.Namespace) -> None:
    target = backends.get(arguments.device).target()
    survived = [] if arguments.no_faults else faults(arguments.device, arguments.within)
    held = _leaks.run(
        arguments.candidates,
        max(1, arguments.candidates // 20),
        arguments.device,
        lambda row: print(row, flush=True),
        arguments.search_within,
    )
    lost = sum(row["what becomes of it"] == "NOT SURVIVED" for row in survived)
    columns = [column for column in held[0] if column not in ("candidates", "failed", "s")]
    body = (
        f"{len(survived)} faults, {lost} not survived.\n\n{table(survived)}\n\n## A long search\n\n"
        f"{grown(held)}\n\n{table(held, columns)}"
    )
    save(arguments, target, [*survived, *held], f"python scripts/bench_faults.py {arguments.said}", body=body)


if __name__ == "__main__":
    made = parser(__doc__, "faults-cpu-2-cores")
    made.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    made.add_argument("--candidates", type=int, default=2000, help="of the long search")
    made.add_argument("--no-faults", action="store_true", help="only the long search")
    made.add_argument("--within", type=float, default=900.0, help="seconds for the faults")
    made.add_argument("--search-within", type=float, help="seconds for the long search")
    given = made.parse_args()
    given.said = " ".join(sys.argv[1:])
    main(given)

"""Every op as a user would tune it, at a plain and an odd shape, in every dtype: `scripts/sweep_ops.py`.

A search that ends in a traceback, without a right candidate, or with a fault that the check lets pass is a
mistake of ksearch's own: the exit status is then 1. Candidates that were wrong are told, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _bench import ROOT

from ksearch import operators
from ksearch.operators import Op
from ksearch.types import ITEMSIZE

_SHAPES = {"linear": ("64x512x256", "7x65x33"), "strided": ("4x32x16x16", "3x7x5x9")}
"""By family; a linear's are BATCHxINxOUT."""
_CHANNELS = ("4x32x16x16", "3x32x7x5")
_OTHERS = ("64x4096", "37x1001")

_OPTIONS = {"clamp": "options = { min = -0.5 }\n"}
"""Of ops that want some."""

_AT_ONCE = 8
"""Ops of one study, so that something is told every minute."""


def shapes_of(op: Op) -> tuple[str, str]:
    program = op.program()
    if program.groups or program.has_channels:
        return _CHANNELS
    return _SHAPES.get(program.family, _OTHERS)


def entries(names: list[str], dtype: str) -> Iterator[str]:
    """One `[[workload]]` for each op, and one more over a dim in the middle where it has that option."""
    for name in names:
        op = operators.get(name)
        shapes = ", ".join(f'"{shape}"' for shape in shapes_of(op))
        head = f'[[workload]]\nop = "{name}"\ndtype = "{dtype}"\n'
        yield f"{head}shapes = [{shapes}]\n{_OPTIONS.get(name, '')}"
        if "dim" in op.options:
            yield f'{head}shapes = ["6x128x64", "5x77x13"]\noptions = {{ dim = "-2" }}\n'


def tune(study: Path, db: Path, trials: int, device: str) -> list[dict[str, Any]]:
    """What `ksearch tune` says of each workload of the study."""
    command = [sys.executable, "-m", "ksearch", "tune", "--study", str(study), "--db", str(db), "--json"]
    command += ["--trials", str(trials), "--device", device, "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    answer = {} if "Traceback" in done.stderr or not done.stdout.strip() else json.loads(done.stdout)
    if "workloads" not in answer:  # or the device was busy
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    found: list[dict[str, Any]] = answer["workloads"]
    return found


def verdict(result: dict[str, Any]) -> str:
    """What is wrong; empty where nothing is."""
    if result["state"] not in ("tuned", "pytorch"):
        return f"{result['state']}: {result['reason']}"
    wrong = {status: n for status, n in result.get("failures", {}).items() if status != "compile_timeout"}
    return f"candidates: {wrong} {result['first_failures']}" if wrong else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*", help="some of them; all where none is named")
    parser.add_argument("--dtype", choices=ITEMSIZE, action="append", help="repeatable; default: all")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    told = parser.parse_args()
    names, count, wrong = told.ops or operators.names(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for dtype, at in itertools.product(told.dtype or ITEMSIZE, range(0, len(names), _AT_ONCE)):
            study = Path(folder, f"{dtype}_{at}.toml")
            study.write_text("\n".join(entries(names[at : at + _AT_ONCE], dtype)))
            for result in tune(study, Path(folder, "sweep.db"), told.trials, told.device):
                count += 1
                if said := verdict(result):
                    wrong += 1
                    options = "".join(f" {name}={value}" for name, value in result["options"].items())
                    shape = "x".join(map(str, result["shape"]))
                    print(f"{result['op']} {shape} {dtype}{options}: {said}", flush=True)
            print(f"{dtype}: {count} workloads so far, {wrong} of them wrong", file=sys.stderr, flush=True)
    print(f"{count} workloads, {wrong} of them wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

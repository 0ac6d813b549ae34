from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import tuning
from tests.faults.told import Told, line
from tests.faults.tuning import Forks, Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    """To be called once the fault was survived; `scripts/bench_faults.py` makes a row of it."""

    def tell(fault: str, what: object) -> None:
        request.node.user_properties += [("fault", fault), ("outcome", line(what))]

    return tell


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs tuners, all at once, each in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.tuning"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def run(*runs: Run) -> list[int]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(tuning.line(runs))
            process.stdin.flush()
            return [int(word) for word in process.stdout.readline().split()]

        yield run
        process.stdin.close()

"""Tuners that are killed, or meet: `python -m tests.faults.tuning` forks some for each line that it reads.

Importing what a tuner needs takes seconds, and is done once. A line is a list of Runs as JSON, which go on at
the same time; the answer is the exit status of each, negative where a signal ended it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ksearch import tuner
from ksearch.evaluate import worker

CONFIGS = 6
SHAPE = (4, 8)

OP = f"""\
import ksearch

@ksearch.op
class Twice(ksearch.TemplateOp):
    name = "twice"
    templates = {{"cpu": "twice.cpp"}}

    def reference(self, x):
        return x * 2

    def space(self, workload, target):
        return {{"step": list(range(1, {CONFIGS + 1}))}}

    def launch(self, config, workload, target):
        return ksearch.Launch(threads=1)
"""
TEMPLATE = """\
typedef long i64;
extern "C" void {{ entry }}(const float* x, float* out, i64 rows, int threads) {
    volatile int which = {{ step }};  // no two binaries are equal
    for (i64 i = 0; i < rows * {{ cols }}; ++i) out[i] = x[i] * 2;
}
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One tuner, and where it dies."""

    folder: str
    """Of the op, the database, the cache and the log."""
    dies_in: str = ""
    """`module:function` or `module:Class.method`; empty: it lives."""
    call: int = 1
    """In which call."""
    after: bool = False
    """Once that call has returned; else before."""
    environment: dict[str, str] = field(default_factory=dict)
    """More of it."""


def write_op(folder: Path) -> str:
    """The op's files; gives its location."""
    (folder / "mine.py").write_text(OP)
    (folder / "twice.cpp").write_text(TEMPLATE)
    return f"{folder / 'mine.py'}:twice"


Forks: TypeAlias = Callable[..., list[int]]
"""Takes Runs and gives their exit statuses."""


def line(runs: Sequence[Run]) -> str:
    return json.dumps([asdict(run) for run in runs]) + "\n"


def _die(run: Run) -> None:
    """Put the death of this process in the place of one call."""
    module, _, path = run.dies_in.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    stated = vars(owner)[name]
    function: Callable[..., Any] = stated.__func__ if isinstance(stated, classmethod) else stated
    calls = 0

    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == run.call and not run.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if calls == run.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, classmethod(watched) if isinstance(stated, classmethod) else watched)


def tune(run: Run) -> None:
    """In a process of its own."""
    folder = Path(run.folder)
    places = {"KSEARCH_DB": "k.db", "KSEARCH_CACHE_DIR": "cache", "FAULTS_LOG": "log"}
    os.environ.update({name: str(folder / place) for name, place in places.items()} | run.environment)
    worker._TARGET = "tests.faults.played:open_session"
    if run.dies_in:
        _die(run)
    where = f"{folder / 'mine.py'}:twice"
    tuner.tune(where, SHAPE, device="cpu", trials=CONFIGS, early_stop=False, jobs=1)


def main() -> None:
    importlib.import_module("alembic.command")  # Optuna's tables are made with it
    print("ready", flush=True)
    for text in sys.stdin:
        children = [_fork(Run(**facts)) for facts in json.loads(text)]
        print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)


def _fork(run: Run) -> int:
    """The child's id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            tune(run)
            status = 0
        except BaseException:  # noqa: BLE001  (a fork must not go on in the loop)
            Path(run.folder, "stderr").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return child


if __name__ == "__main__":
    main()

"""What the benchmarks share: interleaved timing with a cold cache, and results that carry their origin."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _rivals import Call, Case, make_case, rivals

import ksearch
from ksearch.evaluate import timing
from ksearch.types import Option, Target

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
Workload = tuple[str, tuple[int, ...], str]
"""Op, shape, dtype."""


def parser(doc: str | None, name: str, trials: int | None = None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if trials is not None:
        made.add_argument("--trials", type=int, default=trials, help="candidates of each search")
    made.add_argument("--name", default=name, help="results go to docs/results/NAME.{json,md}")
    made.add_argument("--commit", default=commit(), help="where this is not a git checkout")
    return made


def commit() -> str:
    """The checkout's commit; `-dirty` where files differ from it, `unknown` outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def race(calls: Mapping[str, Call], target: Target, *, seconds: float, rounds: int = 60) -> dict[str, float]:
    """Median microseconds of each call; all run once in every round, in shuffled order, cold cache."""
    clock = timing.clock(target)
    for call in calls.values():
        timing.warm_up(clock, call, 0.1)
    samples = timing.race(clock, list(calls.values()), budget_s=seconds, seed=0, rounds=rounds)
    return {name: statistics.median(times) for name, times in zip(calls, samples, strict=True)}


def label(workload: Workload, options: Mapping[str, Option] | None = None) -> str:
    op, shape, dtype = workload
    named = "".join(f" {name}={value}" for name, value in (options or {}).items())
    return f"{op} {'x'.join(map(str, shape))} {dtype}{named}"


def tune_and_race(
    workload: Workload,
    target: Target,
    database: Path,
    *,
    trials: int,
    seconds: float,
    options: Mapping[str, Option] | None = None,
    more: Callable[[Case], dict[str, Call]] | None = None,
) -> dict[str, Any]:
    """Tune, load the winner as production code does, race it; one row of results.

    `options` are those of the op, roles of its tensors among them; `more` gives further rivals.
    """
    op, shape, dtype = workload
    options = options or {}
    report = ksearch.tune(
        op, shape, dtype=dtype, device=target.backend, options=options, trials=trials, db=database
    )
    with warnings() as said:
        handle = ksearch.load(op, shape, dtype, device=target.backend, db=database, **options)
        case = make_case(op, shape, dtype, target.backend, options)
        config = report.winner.config
        # Where PyTorch won, both allocate: a handle would have to copy its results into `out`, and on a CPU
        # new memory alone costs as much as sigmoid.
        mine = functools.partial(handle, *case.inputs, **({"out": case.out} if config else {}))
        calls = {"ksearch": mine, **rivals(case, into=bool(config)), **(more(case) if more else {})}
        times = race(calls, target, seconds=seconds)
    row = {
        "workload": label(workload, options),
        **{f"{name} us": time_us for name, time_us in times.items()},
        "of copy_": times["copy_"] / times["ksearch"],
        **{
            f"times {name}": times[name] / times["ksearch"]
            for name in times
            if name not in ("ksearch", "copy_")
        },
        "candidates": report.trials,
        "failed": sum(report.failures.values()),
        "ended": str(report.ended),
        "tuned in s": report.elapsed_s,
        "config": "PyTorch" if not config else " ".join(f"{k}={v}" for k, v in config.items()),
    }
    if said:  # a kernel that was tuned, and did not run
        row["config"] = f"PyTorch: {said[0]}"
    print(row, flush=True)
    return row


def against(rivals: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For each rival that any row was measured with, how many times its speed ksearch has."""
    lines = []
    for rival in rivals:
        times = {name: row[f"times {rival}"] for name, row in rows.items() if f"times {rival}" in row}
        if times:
            slower = [f"{name} ({value:.3f})" for name, value in times.items() if value < 1 / 1.01]
            lines.append(
                f"Times {rival}: geometric mean {statistics.geometric_mean(times.values()):.3f} of "
                f"{len(times)} rows; ksearch is slower by more than 1 % in {len(slower)}"
                f"{': ' * bool(slower)}{', '.join(slower)}."
            )
    return lines


@contextmanager
def warnings() -> Iterator[list[str]]:
    """What ksearch has to say meanwhile: that a call runs PyTorch, and why."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("ksearch")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)


def save(
    arguments: argparse.Namespace,
    target: Target,
    rows: Sequence[Mapping[str, Any]],
    command: str,
    *,
    body: str | None = None,
    more_facts: Mapping[str, str] | None = None,
) -> None:
    """Write docs/results/<name>.json, and the same as a table (or `body`) in <name>.md."""
    facts = {
        "device": target.device,
        "commit": arguments.commit,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        **(more_facts or {}),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{arguments.name}.json"
    path.write_text(json.dumps({"command": command, **facts, "rows": rows}, indent=1) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    text = f"# {path.stem}\n\n`{command}`\n\n{about}\n\n" + (body or table(rows)) + "\n"
    path.with_suffix(".md").write_text(text)
    print(text)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """In Markdown, with every column that any row has, or those of `columns` that any row has."""
    present = list(dict.fromkeys(column for row in rows for column in row))
    columns = present if columns is None else [column for column in columns if column in present]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return str(value)

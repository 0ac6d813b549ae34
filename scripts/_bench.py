"""What the benchmarks share: interleaved timing with a cold cache, and results that carry their origin."""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ksearch
from ksearch.evaluate import timing
from ksearch.types import Target

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
Call = Callable[[], object]
Workload = tuple[str, tuple[int, ...], str]
"""Op, shape, dtype."""


def parser(doc: str | None, name: str, trials: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def rivals(op: str, x: torch.Tensor, y: torch.Tensor) -> dict[str, Call]:
    """A copy of the same bytes, and PyTorch into memory that is there already."""
    eager = {"softmax": (torch.softmax, x, -1), "sigmoid": (torch.sigmoid, x)}[op]
    return {"copy_": functools.partial(y.copy_, x), "eager": functools.partial(*eager, out=y)}


def race(calls: Mapping[str, Call], target: Target, *, seconds: float, rounds: int = 60) -> dict[str, float]:
    """Median microseconds of each call; all run once in every round, in shuffled order, cold cache."""
    clock = timing.clock(target)
    for call in calls.values():
        timing.warm_up(clock, call, 0.1)
    samples = timing.race(clock, list(calls.values()), budget_s=seconds, seed=0, rounds=rounds)
    return {name: statistics.median(times) for name, times in zip(calls, samples, strict=True)}


def tune_and_race(
    workload: Workload,
    target: Target,
    database: Path,
    *,
    trials: int,
    seconds: float,
    more: Callable[[str, torch.Tensor], dict[str, Call]] | None = None,
) -> dict[str, Any]:
    """Tune, load the winner as production code does, race it; one row of results."""
    op, shape, dtype = workload
    report = ksearch.tune(op, shape, dtype=dtype, device=target.backend, trials=trials, db=database)
    handle = ksearch.load(op, shape, dtype, device=target.backend, db=database)
    x = torch.randn(shape, dtype=getattr(torch, dtype), device=target.backend)
    y = torch.empty_like(x)
    calls = {
        "ksearch": functools.partial(handle, x, out=y),
        **rivals(op, x, y),
        **(more(op, x) if more else {}),
    }
    times = race(calls, target, seconds=seconds)
    config = report.winner.config
    row = {
        "workload": f"{op} {'x'.join(map(str, shape))} {dtype}",
        **{f"{name} us": time_us for name, time_us in times.items()},
        "of copy_": times["copy_"] / times["ksearch"],
        **{
            f"times {name}": times[name] / times["ksearch"]
            for name in times
            if name not in ("ksearch", "copy_")
        },
        "candidates": report.trials,
        "failed": sum(report.failures.values()),
        "tuned in s": report.elapsed_s,
        "config": " ".join(f"{k}={v}" for k, v in config.items()) if config else "PyTorch",
    }
    print(row, flush=True)
    return row


def save(
    arguments: argparse.Namespace, target: Target, rows: Sequence[Mapping[str, Any]], command: str
) -> None:
    """Write docs/results/<name>.json, and the same as a table in <name>.md."""
    facts = {
        "device": target.device,
        "commit": arguments.commit,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{arguments.name}.json"
    path.write_text(json.dumps({"command": command, **facts, "rows": rows}, indent=1) + "\n")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    text = f"# {arguments.name}\n\n`{command}`\n\n{about}\n\n" + "\n".join(lines) + "\n"
    path.with_suffix(".md").write_text(text)
    print(text)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return str(value)

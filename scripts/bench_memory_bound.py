"""Tuned kernels against copy_, PyTorch, torch.compile and Liger: `python scripts/bench_memory_bound.py`.

Every workload is tuned first (into a database of its own run), then the winner, loaded as production code
loads it, races the others: interleaved, cold L2, medians. Ratios within one row are what carries over
to another machine. `--gpus 4` shares the rows out to four GPUs; `--rows` and `--resume` keep what a killed
run has finished.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _bench import Workload, against, label, parser, save, table, tune_and_race
from _rivals import Call, Case, check, compiled, liger
from _seats import Row, Run, add_options, collect, command_of, first_line, limits, make_seats, serve

from ksearch import backends
from ksearch.evaluate.process import Answer
from ksearch.types import ITEMSIZE, Option, Target

ROWWISE = ("softmax", "log_softmax", "rmsnorm", "layernorm")
SHAPES = (
    *((32768, 256), (32768, 1024), (16384, 4096), (8192, 8192), (4096, 16384), (4096, 32768)),
    *((4096, 65536), (2048, 131072), (1024, 262144), (8, 131072), (256, 4096)),
)
POINTWISE = ("gelu", "silu", "swiglu", "residual_add", "add_rmsnorm")
REDUCTIONS = ("sum", "amax", "argmax", "logsumexp", "var", "norm")
LOSSES = ("cross_entropy", "mse_loss", "kl_div", "triplet_margin_loss")
LOGITS = ((32768, 4096), (8192, 128256))
SCANS = ("cumsum", "cumprod", "reverse_cumsum", "exclusive_cumsum", "masked_cumsum")
IMAGES = ("rms_scale", "groupnorm", "instancenorm", "batchnorm")
WORKLOADS: tuple[Workload, ...] = (
    ("softmax", (4096, 393216), "float32"),
    ("sigmoid", (4096, 393216), "float32"),
    *((op, shape, dtype) for op in ROWWISE for dtype in ("float32", "bfloat16") for shape in SHAPES),
    *((op, (8192, 8192), "float32") for op in POINTWISE),
    *((op, (4096, 14336), "bfloat16") for op in POINTWISE),
    ("softmax", (1, 10_000_000), "float32"),
    ("softmax", (1_000_000, 64), "bfloat16"),
    *((op, (32768, 4096), dtype) for op in REDUCTIONS for dtype in ("float32", "bfloat16")),
    *((op, (100_000_000,), "float32") for op in ("sum", "argmax", "norm")),
    *(("sum", shape, "float32") for shape in ((8, 131072), (32768, 256), (2048, 131072))),
    ("sum", (1_000_000, 64), "bfloat16"),
    *(("cross_entropy", shape, dtype) for dtype in ("float32", "bfloat16") for shape in LOGITS),
    *((op, (32768, 4096), dtype) for op in LOSSES[1:] for dtype in ("float32", "bfloat16")),
    *((op, (32768, 32768), "float32") for op in SCANS),
    *(("cumsum", (8192, 8192), dtype) for dtype in ("float32", "bfloat16")),
    *(("cumsum", shape, "float32") for shape in ((1, 100_000_000), (8, 1_000_000), (32768, 256))),
    *((op, (112, 64, 512, 512), "float32") for op in IMAGES),
    *(("softmax", (64, 512, 4096), dtype) for dtype in ("float32", "bfloat16")),
    ("softmax", (16, 4096, 4096), "float32"),
    *((op, (128, 4096, 4095), "float32") for op in ("sum", "argmax")),
    ("layernorm", (16, 4_194_304), "float32"),
)
COLUMNS = (
    *("workload", "ksearch us", "copy_ us", "of copy_", "times eager", "times torch.compile", "times Liger"),
    *("candidates", "ended", "tuned in s", "config", "error"),
)
_USUAL = {"prefetch": "0", "keep": "False", "order": "static", "weights": "global", "grid": "one_shot"}
_USUAL |= dict.fromkeys(("rows", "cluster", "split", "unroll", "min_blocks"), "1")
_USUAL |= dict.fromkeys(("load", "store"), "default")
"""Parameters that say nothing at this value; the table leaves them out."""


def open_seat() -> Answer:
    """What a seat's process runs."""
    return serve(measure)


def measure(task: tuple[Workload, int, float], device: str, database: Path) -> Row:
    """One row: the workload, tuned with at most so many trials and raced for at most so many seconds."""
    workload, trials, seconds = task
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()  # what the last row left, also where it failed
    facts: Row = {}

    def more(case: Case) -> dict[str, Call]:
        found, said = peers(case)
        facts.update(said)
        return found

    target = backends.get(device).target()
    row = tune_and_race(
        workload, target, database, trials=trials, seconds=seconds, options=options_of(workload), more=more
    )
    return row | facts


def options_of(workload: Workload) -> dict[str, Option]:
    """Reductions are over the last of two dims, over the middle one of three, and of one dim over all."""
    op, shape, _ = workload
    if op == "groupnorm":
        return {"groups": 8}
    if len(shape) == 3 and op in (*REDUCTIONS, *ROWWISE):
        return {"dim": "-2"}
    return {"dim": "-1"} if op in REDUCTIONS and len(shape) > 1 else {}


def name_of(workload: Workload) -> str:
    """Its row's."""
    return label(workload, options_of(workload))


def peers(case: Case) -> tuple[dict[str, Call], Row]:
    """Those that compute this case; and how long each took to get ready, or why it is not among them."""
    found: dict[str, Call] = {}
    facts: Row = {}
    for name, make in (("torch.compile", compiled), ("Liger", liger)):
        began = time.perf_counter()
        try:
            call = make(case)
            if call is None:
                continue
            check(case, call)
        except Exception as error:  # noqa: BLE001  (a rival's own: whatever it is, the row says so)
            facts[f"no {name}"] = f"{type(error).__name__}: {first_line(error)}"
        else:
            found[name] = call
            facts[f"{name} ready in s"] = time.perf_counter() - began
    return found, facts


def size_bytes(workload: Workload) -> int:
    """Of the first input."""
    _, shape, dtype = workload
    return math.prod(shape) * ITEMSIZE[dtype]


def measure_all(
    workloads: Sequence[Workload],
    keep: Callable[[Row], None],
    *,
    device: str = "cuda",
    gpus: int = 1,
    trials: int = 200,
    seconds: float = 6.0,
    within_s: float | None = None,
) -> None:
    """`keep` gets a row for each workload, the largest first, so that no long one is left to the last."""
    tasks = [
        (name_of(workload), (workload, trials, seconds))
        for workload in sorted(workloads, key=size_bytes, reverse=True)
    ]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = Run("bench_memory_bound:open_seat", tasks, keep, within_s)
        run.on(make_seats(device, gpus, Path(folder)))


def missing(workloads: Sequence[Workload], select: str, known: Mapping[str, Row]) -> list[Workload]:
    """Those that the expression finds and that have no row yet, or one that says that they failed."""
    found = [each for each in workloads if re.search(select, name_of(each))]
    return [each for each in found if name_of(each) not in known or "error" in known[name_of(each)]]


def summarize(rows: Mapping[str, Row]) -> list[str]:
    """What the table says in all, as lines of a Markdown list."""
    good = {name: row for name, row in rows.items() if "error" not in row}
    lines = []
    for ops in (ROWWISE, (*REDUCTIONS, *LOSSES)):
        large = {
            name_of(each): good[name_of(each)]["of copy_"]
            for each in WORKLOADS
            if each[0] in ops and size_bytes(each) >= 4 << 20 and name_of(each) in good
        }
        if not large:
            continue
        least = min(large, key=large.__getitem__)
        by_op = {op: [of for name, of in large.items() if name.split()[0] == op] for op in ops}
        lines.append(
            f"Of copy_, the {len(large)} rows of {', '.join(ops)} with an input of 4 MB (2^22 bytes) or "
            f"more: geometric mean {_mean(list(large.values())):.3f} ("
            + ", ".join(f"{op} {_mean(found):.3f}" for op, found in by_op.items() if found)
            + f"); least {large[least]:.3f}, {least}."
        )
    lines += against(("eager", "torch.compile", "Liger"), good)
    if good:
        seconds = statistics.median(row["tuned in s"] for row in good.values())
        trials = statistics.median(row["candidates"] for row in good.values())
        won = sum(row["config"] == "PyTorch" for row in good.values())
        unused = sum(row["config"].startswith("PyTorch:") for row in good.values())
        lines.append(
            f"Tuned in {seconds:.1f} s with {trials:.0f} candidates (medians). PyTorch won {won} of "
            f"{len(good)} rows; kernels that won and did not run: {unused}."
        )
    lines.append(
        f"Workloads of the suite: {len(WORKLOADS)}; measured {len(good)}, failed {len(rows) - len(good)}."
    )
    return lines


def _mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)


def shorten(config: str) -> str:
    """Without the parameters that stand at their usual value."""
    if config.startswith("PyTorch"):
        return config
    parts = (part.split("=", 1) for part in config.split())
    return " ".join(f"{name}={value}" for name, value in parts if _USUAL.get(name) != value)


def report(arguments: argparse.Namespace, target: Target, rows: Mapping[str, Row], command: str) -> None:
    """The results file and the page, of the rows there are."""
    shown: list[dict[str, Any]] = [
        {**row, "config": shorten(row["config"])} if "config" in row else row for row in rows.values()
    ]
    body = table(shown, COLUMNS) + "\n\n" + "\n".join(f"- {line}" for line in summarize(rows))
    try:
        version = importlib.metadata.version("liger_kernel")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    save(arguments, target, list(rows.values()), command, body=body, more_facts={"liger": version})


def main() -> None:
    options = parser(__doc__, "memory-bound-h200", 200)
    add_options(options)
    arguments = options.parse_args()

    def measure(known: Mapping[str, Row], keep: Callable[[Row], None]) -> None:
        measure_all(missing(WORKLOADS, arguments.select, known), keep, **limits(arguments))

    known = collect(arguments, measure)
    rows = {name_of(each): known[name_of(each)] for each in WORKLOADS if name_of(each) in known}
    report(arguments, backends.get("cuda").target(0), rows, command_of(arguments, Path(__file__)))


if __name__ == "__main__":
    main()

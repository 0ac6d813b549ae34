"""What chance costs: one study five times with different seeds, and its five winners against each other.

`python scripts/bench_regret.py`. Every run begins from nothing (a database of its own; compiled kernels are
shared). Then all winners race in one process, interleaved, with a cold cache, so that what differs is the
choice and not the moment of the measurement. The regret is by how much the slowest of them is slower than the
fastest.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from _bench import Workload, label, parser, save, table
from _seats import Row, Run, add_options, collect, make_seats, serve
from bench_memory_bound import missing

import ksearch
from ksearch import artifacts, backends
from ksearch.errors import WorkerError
from ksearch.evaluate.confidence import bootstrap_ci
from ksearch.evaluate.messages import Finding
from ksearch.evaluate.process import Answer
from ksearch.evaluate.worker import Worker
from ksearch.plan import make_plan
from ksearch.types import Winner

WORKLOADS: Mapping[str, tuple[Workload, ...]] = {
    "cuda": (
        ("softmax", (8192, 8192), "bfloat16"),
        ("softmax", (4096, 65536), "float32"),
        ("layernorm", (8192, 8192), "float32"),
        ("rmsnorm", (4096, 16384), "bfloat16"),
        ("gelu", (8192, 8192), "float32"),
        ("add_rmsnorm", (4096, 14336), "bfloat16"),
        ("linear_relu", (1024, 8192, 8192), "bfloat16"),
    ),
    "cpu": (
        ("softmax", (2048, 4096), "float32"),
        ("layernorm", (2048, 4096), "bfloat16"),
        ("sigmoid", (2048, 4096), "float32"),
    ),
}
COLUMNS = (
    *("workload", "regret %", "interval %", "kernels", "fastest us", "slowest us", "times PyTorch"),
    *("bound by certificates %", "candidates", "tuned in s", "error"),
)
_ASKED, _FROM_US = 2.0, 50.0
"""Percent, and for workloads of how many microseconds: below, one launch's luck is more than that."""


def open_seat() -> Answer:
    """What a seat's process runs."""
    return serve(measure)


def measure(task: tuple[Workload, int, int | None, float], device: str, database: Path) -> Row:
    """One row: a workload, the number of seeds, candidates of each search, seconds for the race."""
    workload, seeds, trials, seconds = task
    op, shape, dtype = workload
    reports = []
    for seed in range(seeds):
        own = database.with_name(f"{label(workload).replace(' ', '-')}-{seed}.db")
        own.unlink(missing_ok=True)
        reports.append(ksearch.tune(op, shape, dtype=dtype, device=device, trials=trials, seed=seed, db=own))
    times, interval, baseline_us = race(
        [report.winner for report in reports], op, shape, dtype, device, seconds
    )
    fastest_us, slowest_us = min(times), max(times)
    return {
        "workload": label(workload),
        "regret %": 100 * (slowest_us / fastest_us - 1),
        "interval %": " to ".join(f"{100 * (end - 1):.1f}" for end in interval),
        "kernels": len({report.winner.artifact for report in reports}),
        "fastest us": fastest_us,
        "slowest us": slowest_us,
        "times PyTorch": baseline_us / slowest_us,
        "bound by certificates %": 100
        * max(report.winner.certificate.get("regret", 0.0) for report in reports),
        "candidates": statistics.median(report.trials for report in reports),
        "tuned in s": statistics.median(report.elapsed_s for report in reports),
        "configs": [report.winner.config for report in reports],
        "times us": times,
    }


def race(
    winners: Sequence[Winner], op: str, shape: tuple[int, ...], dtype: str, device: str, seconds: float
) -> tuple[list[float], tuple[float, float], float]:
    """Microseconds of each winner, the interval of the slowest's time by the fastest's, and PyTorch's time.

    Equal kernels race once, and where PyTorch won its own time counts.
    """
    plan = make_plan(op, shape, dtype, device, {})
    kernels = {winner.artifact: winner.config for winner in winners if winner.config is not None}
    candidates = [
        plan.candidate(config, artifacts.build(plan.backend, plan.render(config)))
        for config in kernels.values()
    ]
    with Worker(plan.job(seed=len(winners))) as worker:
        worker.start()
        laps = worker.race(candidates, seconds)
    if isinstance(laps, Finding):
        raise WorkerError(f"the race of the winners broke: {laps.message}")
    samples = dict(zip(kernels, laps.candidates_us, strict=True)) | {None: laps.baseline_us}
    medians = {which: statistics.median(samples[which]) for which in {winner.artifact for winner in winners}}
    slowest, fastest = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    interval = bootstrap_ci(samples[slowest], samples[fastest])
    return [medians[w.artifact] for w in winners], interval, statistics.median(laps.baseline_us)


def summarize(rows: Sequence[Row]) -> list[str]:
    """What the table says in all, as lines of a Markdown list."""
    good = [row for row in rows if "error" not in row and row["fastest us"] > _FROM_US]
    if not good:
        return [f"No workload over {_FROM_US:.0f} us was measured."]
    over = [f"{row['workload']} ({row['regret %']:.1f} %)" for row in good if row["regret %"] > _ASKED]
    worst = max(good, key=lambda row: row["regret %"])
    median = statistics.median(row["regret %"] for row in good)
    within = (
        f"Of {len(good)} workloads over {_FROM_US:.0f} us the regret is at most {_ASKED:.0f} % in "
        f"{len(good) - len(over)}"
    )
    return [
        f"{within}: more in {', '.join(over)}." if over else f"{within}.",
        f"The largest is {worst['regret %']:.1f} %, of {worst['workload']}; the median {median:.1f} %.",
    ]


def main() -> None:
    options = parser(__doc__, "regret-h200", 0)
    add_options(options)
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options.add_argument("--seeds", type=int, default=5)
    arguments = options.parse_args()
    workloads, trials = WORKLOADS[arguments.device], arguments.trials or None

    def run(known: Mapping[str, Row], keep: Callable[[Row], None]) -> None:
        tasks = [
            (label(each), (each, arguments.seeds, trials, 8.0))
            for each in missing(workloads, arguments.select, known)
        ]
        with tempfile.TemporaryDirectory() as folder:
            seats = make_seats(arguments.device, arguments.gpus, Path(folder))
            Run(
                "bench_regret:open_seat",
                tasks,
                keep,
                arguments.within,
                tell=lambda row: f"{row['regret %']:.2f} %",
            ).on(seats)

    known = collect(arguments, run)
    rows = [known[label(each)] for each in workloads if label(each) in known]
    command = f"python scripts/bench_regret.py --device {arguments.device} --seeds {arguments.seeds}"
    command += f" --trials {trials}" if trials else ""
    command += f" --select '{arguments.select}'" if arguments.select else ""
    body = table(rows, COLUMNS) + "\n\n" + "\n".join(f"- {line}" for line in summarize(rows))
    save(arguments, backends.get(arguments.device).target(0), rows, command, body=body)


if __name__ == "__main__":
    main()

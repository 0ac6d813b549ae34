"""How close the search comes to the best there is: `python scripts/bench_search_quality.py`.

Of each workload it evaluates thousands of random configs (all, where there are fewer), then runs the default
search and random search with several seeds. A search's result after so many trials is what `tune` would
promote: the fastest of its best few in a race, as a share of the speed of the best config known. Races
decide, not single screenings, so luck is not counted.

`--table FILE` keeps every outcome, and `--replay FILE ...` repeats the searches from such tables without a
device, over the recorded configs alone. Ten workloads take ten minutes; `--pairs 0 1 2` runs some, and rows
that the same commit wrote before stay in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _bench import RESULTS, Workload, label, parser, save, table
from _landscape import Landscape, Listed, finalists, read, run
from _seats import first_line

from ksearch import backends, stopping
from ksearch.evaluate.messages import Finding
from ksearch.evaluate.pool import Build, CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.families import Space
from ksearch.operators import parse_shape
from ksearch.plan import Plan, device_lock, make_plan
from ksearch.search import Study, Trial
from ksearch.tuner import ahead, default_jobs
from ksearch.types import Config, Outcome, canonical_json

PAIRS: dict[str, list[Workload]] = {
    "cuda": [
        ("softmax", (8192, 8192), "bfloat16"),
        ("softmax", (8192, 8192), "float32"),
        ("softmax", (4096, 32768), "bfloat16"),
        ("softmax", (1024, 262144), "float32"),
        ("softmax", (8, 131072), "float32"),
        ("softmax", (32768, 256), "bfloat16"),
        ("rmsnorm", (8192, 8192), "bfloat16"),
        ("layernorm", (4096, 16384), "float32"),
        ("log_softmax", (32768, 1024), "bfloat16"),
        ("gelu", (8192, 8192), "float32"),
    ],
    "cpu": [
        ("softmax", (256, 4096), "float32"),
        ("sigmoid", (256, 4096), "float32"),
    ],
}
SAMPLERS = ("tpe", "random")


class Device:
    """Evaluates configs of one workload, each once, and notes what became of them in the landscape."""

    def __init__(self, plan: Plan, worker: Worker, pool: CompilePool, landscape: Landscape) -> None:
        self._plan, self._worker, self._pool, self._known = plan, worker, pool, landscape
        self._begun: set[str] = set()
        self._by_code: dict[str, Outcome] = {}
        self._best_us: float | None = None

    def begin(self, config: Config) -> None:
        key = canonical_json(config)
        if key not in self._begun:
            self._begun.add(key)
            self._pool.submit(key, self._plan.render(config))

    def finish(self, config: Config) -> Outcome:
        key = canonical_json(config)
        while key not in self._known.outcomes:
            for build in self._pool.completed(wait_for_all=self._plan.backend.exclusive):
                self._known.outcomes[str(build.tag)] = self._evaluate(build)
        return self._known.outcomes[key]

    def _evaluate(self, build: Build) -> Outcome:
        if build.artifact is None:
            assert build.status is not None
            return Outcome(build.status, message=build.message)
        candidate = self._plan.candidate(json.loads(str(build.tag)), build.artifact)
        code = f"{candidate.artifact.digest} {candidate.launch}"
        if code not in self._by_code:
            outcome = self._by_code[code] = self._worker.screen(candidate, self._best_us)
            if outcome.time_us is not None:
                self._best_us = min(self._best_us or outcome.time_us, outcome.time_us)
        return self._by_code[code]

    def race(self, keys: Sequence[str], seconds: float) -> None:
        """Medians of paired rounds. Compiled anew, which the cache makes free."""
        for key in keys:
            self._pool.submit(key, self._plan.render(json.loads(key)))
        built = {str(build.tag): build.artifact for build in self._pool.completed(wait_for_all=True)}
        candidates = [
            self._plan.candidate(json.loads(key), artifact) for key in keys if (artifact := built[key])
        ]
        laps = self._worker.race(candidates, seconds)
        if isinstance(laps, Finding):
            print(f"{self._known.workload}: screened times only, the race failed: {laps.message}", flush=True)
            return
        self._known.baseline_us = statistics.median(laps.baseline_us)
        self._known.ceiling_us = statistics.median(laps.ceiling_us)
        for candidate, samples in zip(candidates, laps.candidates_us, strict=True):
            self._known.raced_us[canonical_json(candidate.config)] = statistics.median(samples)


def explore(workload: Workload, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it for one workload on the device; one row of results."""
    op, shape, dtype = workload
    began = time.perf_counter()
    plan = make_plan(op, shape, dtype, arguments.device, {})
    jobs = default_jobs(plan.backend)
    with (
        device_lock(plan.target),
        Worker(plan.job(0)) as worker,
        CompilePool(plan.target.backend, jobs) as pool,
    ):
        ready = worker.start()
        configs = list(plan.space)
        landscape = Landscape(
            str(plan.workload),
            plan.target,
            {name: list(values) for name, values in plan.space.values.items()},
            plan.guesses,
            ready.baseline_us,
            ready.ceiling_us,
            ahead(plan.backend, jobs),
        )
        device = Device(plan, worker, pool, landscape)
        chosen = random.Random(0).sample(configs, min(arguments.points, len(configs)))
        everything = Listed(landscape.values, configs)
        sample = Study(Listed(landscape.values, chosen), sampler="random", seed=0)
        run(sample, len(chosen), 2 * jobs, device.finish, device.begin)
        studies = {
            (sampler, seed): run(
                new_study(everything, landscape, sampler, seed),
                max(arguments.budgets),
                landscape.ahead,
                device.finish,
                device.begin,
            )
            for sampler in SAMPLERS
            for seed in range(arguments.seeds)
        }
        searched = (finalists(trials[:budget]) for trials in studies.values() for budget in arguments.budgets)
        passed = [key for key, outcome in landscape.outcomes.items() if outcome.time_us is not None]
        best = sorted(passed, key=landscape.time_us)[:10]
        device.race(list(dict.fromkeys([*best, *(key for keys in searched for key in keys)])), 4.0)
    if arguments.table:
        landscape.write(arguments.table)
    return {**score(landscape, studies, arguments.budgets, len(configs)), "s": time.perf_counter() - began}


def new_study(space: Space, landscape: Landscape, sampler: str, seed: int) -> Study:
    """As `tune` begins; chance gets no help."""
    return Study(space, sampler=sampler, seed=seed, guesses=landscape.guesses if sampler == "tpe" else ())


def replay(landscape: Landscape, arguments: argparse.Namespace) -> dict[str, Any]:
    """The searches again, over the recorded configs."""
    studies = {
        (sampler, seed): run(
            new_study(landscape.space, landscape, sampler, seed),
            max(arguments.budgets),
            landscape.ahead,
            lambda config: landscape.outcomes[canonical_json(config)],
        )
        for sampler in SAMPLERS
        for seed in range(arguments.seeds)
    }
    landscape.raced_us = {}  # what the searches find now may not have been raced
    return score(landscape, studies, arguments.budgets, len(landscape.outcomes))


def score(
    landscape: Landscape,
    studies: dict[tuple[str, int], list[Trial]],
    budgets: Sequence[int],
    size: int,
) -> dict[str, Any]:
    """Shares of the best known speed: median and least over the seeds, by sampler and budget; and of the
    default search where it would have ended by itself (with budgets of 200 or more; fewer cut it off)."""
    best_us = landscape.best_us
    failed = sum(outcome.time_us is None for outcome in landscape.outcomes.values())
    row: dict[str, Any] = {
        "workload": landscape.workload,
        "valid configs": size,
        "tried": len(landscape.outcomes),
        "failed": failed,
        "best us": best_us,
        "best, of copy_": landscape.ceiling_us / best_us,
    }
    for sampler in SAMPLERS:
        searches = [trials for (name, _), trials in studies.items() if name == sampler]
        for budget in budgets:
            chosen = [finalists(trials[:budget]) for trials in searches]
            shares = [best_us / min(map(landscape.time_us, keys)) if keys else 0.0 for keys in chosen]
            row[f"{sampler} {budget}"] = statistics.median(shares)
            row[f"{sampler} {budget}, least"] = min(shares)
    ends = [stop(trials, landscape) for (name, _), trials in studies.items() if name == "tpe"]
    shares = [
        best_us / min(map(landscape.time_us, finalists(trials))) for trials in ends if finalists(trials)
    ]
    row["stops after"] = statistics.mean(map(len, ends))
    row["at the stop"] = statistics.median(shares) if shares else 0.0
    row["at the stop, least"] = min(shares, default=0.0)
    return row


def stop(trials: list[Trial], landscape: Landscape) -> list[Trial]:
    """Those that `tune` would have told before it ended by itself; all of them where it would not have."""
    outcomes = [trial.outcome for trial in trials if trial.outcome is not None]
    target, ceiling_us = landscape.target, landscape.ceiling_us
    ends = (n for n in range(len(outcomes)) if stopping.early(outcomes[:n], target, ceiling_us))
    return trials[: next(ends, len(trials))]


def attempt(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row in any case: one workload that fails must not cost the others."""
    try:
        row = work()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is printed, and the row says so)
        traceback.print_exc()
        row = {"workload": name, "error": f"{type(error).__name__}: {first_line(error)}"}
    print(row, flush=True)
    return row


def kept(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows of the last results by workload, if the same commit wrote them."""
    path = RESULTS / f"{arguments.name}.json"
    if not path.exists():
        return {}
    last = json.loads(path.read_text())
    return {row["workload"]: row for row in last["rows"]} if last["commit"] == arguments.commit else {}


def main() -> None:
    options = parser(__doc__, "search-quality-h200")
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options.add_argument("--pairs", type=int, nargs="*", help="which workloads, by place in the list")
    options.add_argument("--only", nargs=3, metavar=("OP", "SHAPE", "DTYPE"), help="this workload instead")
    options.add_argument("--points", type=int, default=2000, help="random configs of each workload")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100], help="trials")
    options.add_argument("--table", type=Path, help="append every outcome to this file (.jsonl.gz)")
    options.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="search in tables instead")
    arguments = options.parse_args()
    if arguments.replay:
        found = [landscape for path in arguments.replay for landscape in read(path)]
        print(table([attempt(each.workload, lambda each=each: replay(each, arguments)) for each in found]))
        return
    workloads = PAIRS[arguments.device]
    if arguments.pairs is not None:
        workloads = [workloads[index] for index in arguments.pairs]
    if arguments.only:
        op, shape, dtype = arguments.only
        workloads = [(op, parse_shape(shape), dtype)]
    rows = kept(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KSEARCH_CACHE_DIR"] = folder
        for each in workloads:
            name = label(each)
            rows[name] = attempt(name, lambda each=each: explore(each, arguments))
            target = backends.get(arguments.device).target(0)
            command = f"python scripts/bench_search_quality.py --points {arguments.points}"
            save(arguments, target, list(rows.values()), command)


if __name__ == "__main__":
    main()

"""How fast the search is, and where its time goes: `python scripts/bench_search_cost.py`.

Tunes one workload several times from nothing (own database and cache) and notes when the best so far
first reached 0.95 of `copy_`, and candidates a second (compiled, checked and timed).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from _bench import parser, save

import ksearch
from ksearch import backends
from ksearch.operators import parse_shape
from ksearch.tuner import Progress


class DeviceMemory(threading.Thread):
    """Watches the memory in use on the first GPU, by all processes, beyond what was in use before."""

    def __init__(self, device: str) -> None:
        super().__init__(daemon=True)
        self.highest_bytes = 0
        self._done = threading.Event()
        self._watch = device == "cuda"

    def run(self) -> None:
        import pynvml  # only where there is a GPU

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        before = pynvml.nvmlDeviceGetMemoryInfo(gpu).used
        while not self._done.wait(0.02):
            used = pynvml.nvmlDeviceGetMemoryInfo(gpu).used - before
            self.highest_bytes = max(self.highest_bytes, used)

    def __enter__(self) -> DeviceMemory:
        if self._watch:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._watch:
            self.join()


def measure(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    seen: list[tuple[float, Progress]] = []
    with tempfile.TemporaryDirectory() as folder, DeviceMemory(arguments.device) as memory:
        os.environ["KSEARCH_CACHE_DIR"] = folder
        report = ksearch.tune(
            arguments.op,
            parse_shape(arguments.shape),
            dtype=arguments.dtype,
            device=arguments.device,
            trials=arguments.trials,
            seed=seed,
            db=Path(folder, "bench.db"),
            progress=lambda progress: seen.append((time.perf_counter() - began, progress)),
        )
    search = [(at, progress) for at, progress in seen if progress.phase == "search"]
    good = (
        at for at, p in search if p.best_us and p.ceiling_us and p.ceiling_us / p.best_us >= arguments.reach
    )
    (first_s, first), (last_s, last) = search[0], search[-1]
    return {
        "seed": seed,
        "candidates": report.trials,
        "ended": str(report.ended),
        "failed": sum(report.failures.values()),
        "candidates/s, searching": (last.trials_done - first.trials_done) / (last_s - first_s),
        "candidates/s, in all": report.trials / report.elapsed_s,
        f"{arguments.reach} of copy_ after s": next(good, None),
        "winner, of copy_": report.winner.ceiling_us / report.winner.time_us,
        "device memory GB": memory.highest_bytes / 1e9,
        "total s": report.elapsed_s,
        **{f"{name} s": seconds for name, seconds in report.phases_s.items()},
    }


def main() -> None:
    options = parser(__doc__, "search-cost-h200", 200)
    options.add_argument("--op", default="softmax")
    options.add_argument("--shape", default="8192x8192")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--reach", type=float, default=0.95)
    arguments = options.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        rows.append(measure(arguments, seed))
        print(rows[-1], flush=True)
    what = (
        f"--op {arguments.op} --shape {arguments.shape} --dtype {arguments.dtype} --trials {arguments.trials}"
    )
    save(
        arguments,
        backends.get(arguments.device).target(0),
        rows,
        f"python scripts/bench_search_cost.py {what}",
    )


if __name__ == "__main__":
    main()

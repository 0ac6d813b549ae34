"""Tuned kernels against copy_, PyTorch and torch.compile: `python scripts/bench_memory_bound.py`.

Every workload is tuned first (into a database of its own), then the winner, loaded as production code
loads it, races the others: interleaved, cold L2, medians. Ratios within one row are what carries over
to another machine.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from _bench import Call, Workload, parser, save, tune_and_race

from ksearch import backends

WORKLOADS: tuple[Workload, ...] = (
    ("softmax", (4096, 393216), "float32"),
    ("sigmoid", (4096, 393216), "float32"),
    ("softmax", (8192, 8192), "float32"),
    ("softmax", (8192, 8192), "bfloat16"),
    ("softmax", (4096, 32768), "float32"),
    ("softmax", (4096, 32768), "bfloat16"),
)


def compiled(op: str, x: torch.Tensor) -> dict[str, Call]:
    """torch.compile at its best without CUDA graphs, which would copy 6 GB inputs."""
    torch._dynamo.reset()
    function = {"softmax": lambda x: torch.softmax(x, -1), "sigmoid": torch.sigmoid}[op]
    best = torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)
    return {"torch.compile": functools.partial(best, x)}


def main() -> None:
    arguments = parser(__doc__, "memory-bound-h200", 200).parse_args()
    target = backends.get("cuda").target(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workload in WORKLOADS:
            database = Path(folder, "bench.db")
            rows.append(
                tune_and_race(workload, target, database, trials=arguments.trials, seconds=4.0, more=compiled)
            )
            torch.cuda.empty_cache()
    save(arguments, target, rows, f"python scripts/bench_memory_bound.py --trials {arguments.trials}")


if __name__ == "__main__":
    main()

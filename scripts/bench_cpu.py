"""Tuned CPU kernels against PyTorch with `out=` and a copy: `python scripts/bench_cpu.py`.

Both sides write into memory that is there already, so neither is charged for page faults.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _bench import Workload, parser, save, tune_and_race

from ksearch import backends

WORKLOADS: tuple[Workload, ...] = (
    ("softmax", (2048, 4096), "float32"),
    ("sigmoid", (2048, 4096), "float32"),
    ("softmax", (2048, 4096), "bfloat16"),
)


def main() -> None:
    arguments = parser(__doc__, "cpu-2-cores", 50).parse_args()
    target = backends.get("cpu").target()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "bench.db")
        rows = [
            tune_and_race(workload, target, database, trials=arguments.trials, seconds=10.0)
            for workload in WORKLOADS
        ]
    save(arguments, target, rows, f"python scripts/bench_cpu.py --trials {arguments.trials}")


if __name__ == "__main__":
    main()

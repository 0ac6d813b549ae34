"""Tuned CPU kernels against PyTorch, torch.compile and a copy: `python scripts/bench_cpu.py`.

PyTorch writes into memory that is there already where it has `out=`; where it has not, freed memory stays
with the process, so that no one is charged for page faults.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from _bench import Workload, parser, save, table
from _seats import Row
from bench_memory_bound import COLUMNS, measure, missing

from ksearch import backends
from ksearch.evaluate.memory import keep_heap

WORKLOADS: tuple[Workload, ...] = (
    ("softmax", (2048, 4096), "float32"),
    ("softmax", (2048, 4096), "bfloat16"),
    ("softmax", (8, 1_000_000), "float32"),
    ("log_softmax", (2048, 4096), "float32"),
    ("layernorm", (2048, 4096), "float32"),
    ("layernorm", (2048, 4096), "bfloat16"),
    ("layernorm", (131_072, 64), "float32"),
    ("rmsnorm", (2048, 4096), "float32"),
    ("add_rmsnorm", (2048, 4096), "bfloat16"),
    ("sigmoid", (2048, 4096), "float32"),
    ("gelu", (2048, 4096), "float32"),
    ("silu", (2048, 4096), "bfloat16"),
    ("swiglu", (2048, 4096), "bfloat16"),
)
_SAME = 1.02
"""Two races of one call on two busy cores differ by up to this factor."""


def summarize(rows: Sequence[Row]) -> list[str]:
    """What the table says in all, as lines of a Markdown list."""
    lines = []
    for rival in ("eager", "torch.compile"):
        times = {row["workload"]: row[f"times {rival}"] for row in rows if f"times {rival}" in row}
        if times:
            slower = [f"{name} ({value:.3f})" for name, value in times.items() if value < 1 / _SAME]
            mean = statistics.geometric_mean(times.values())
            lines.append(
                f"Times {rival}: geometric mean {mean:.3f} of {len(times)} rows; slower by more than "
                f"{_SAME - 1:.0%}: {', '.join(slower) or 'none'}."
            )
    won = [row["workload"] for row in rows if row["config"] == "PyTorch"]
    lines.append(f"PyTorch won, and is what runs: {', '.join(won) or 'nowhere'}.")
    return lines


def main() -> None:
    options = parser(__doc__, "cpu-2-cores", 50)
    options.add_argument("--select", default="", metavar="REGEX", help="only the workloads that it finds")
    arguments = options.parse_args()
    torch.set_grad_enabled(False)
    keep_heap()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "bench.db")
        rows = [
            measure((workload, arguments.trials, 8.0), "cpu", database)
            for workload in missing(WORKLOADS, arguments.select, {})
        ]
    command = f"python scripts/bench_cpu.py --trials {arguments.trials}"
    command += f" --select '{arguments.select}'" if arguments.select else ""
    body = table(rows, COLUMNS) + "\n\n" + "\n".join(f"- {line}" for line in summarize(rows))
    save(arguments, backends.get("cpu").target(), rows, command, body=body)


if __name__ == "__main__":
    main()

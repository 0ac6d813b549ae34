"""What the check makes of wrong kernels that are planted: `python scripts/bench_selftest.py`.

Families, dtypes: a row for each workload; below it what the check said of each fault, over all workloads.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence

import torch
from _bench import parser, save, table
from _seats import Row, first_line

from ksearch import backends
from ksearch.errors import KsearchError
from ksearch.selftest.alone import CASES, Tried, selftest
from ksearch.selftest.mutants import descriptions
from ksearch.types import ITEMSIZE

_MORE_OPS = (
    "gelu",
    "swiglu",
    "layernorm",
    "rmsnorm",
    "log_softmax",
    "argmax",
    "cross_entropy",
    "linear_sigmoid_sum",
    "linear_logsumexp",
)
"""Beside those of each family: of several inputs, with weights, places, targets, sums after a linear."""


def row(tried: Tried, took_s: float) -> Row:
    return {
        "workload": str(tried.workload),
        "faults": len(tried.table.applied),
        "found": tried.table.killed,
        "survivors": ", ".join(tried.table.survivors) or "none",
        "does not apply": len(tried.table.kills) - len(tried.table.applied),
        "s": took_s,
        "kills": [[kill.fault, kill.verdict, kill.message] for kill in tried.table.kills],
    }


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """For each fault how often the check said what, and why it does not apply where it does not."""
    found = []
    for fault, about in descriptions().items():
        kills = [kill for each in rows for kill in each["kills"] if kill[0] == fault]
        said = Counter(verdict for _, verdict, _ in kills if verdict)
        reasons = Counter(message for _, verdict, message in kills if not verdict)
        found.append(
            {
                "fault": fault,
                "what is wrong": about,
                "found": sum(said.values()) - said["passed"],
                "not found": said["passed"],
                "the check said": _counted(said),
                "does not apply": _counted(reasons),
            }
        )
    return found


def _counted(counts: Counter[str]) -> str:
    return "; ".join(f"{text} ({count})" for text, count in counts.most_common()) or "-"


def main() -> None:
    options = parser(__doc__, "selftest-h200" if torch.cuda.is_available() else "selftest-cpu-2-cores")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--ops", nargs="*", metavar="OP", help="of those alone")
    options.add_argument("--dtypes", nargs="*", default=list(ITEMSIZE), metavar="DTYPE")
    options.add_argument("--within", type=float, metavar="S", help="begin no op after so many seconds")
    arguments = options.parse_args()
    rows: list[Row] = []
    failed: list[str] = []
    began = last = time.monotonic()

    def tell(tried: Tried) -> None:
        nonlocal last
        now = time.monotonic()
        rows.append(row(tried, now - last))
        last = now
        print(f"{tried.workload}: {tried.table.killed} of {len(tried.table.applied)}", flush=True)

    cases = [*CASES, *((op, {}) for op in _MORE_OPS)]
    for op, choices in (each for each in cases if arguments.ops is None or each[0] in arguments.ops):
        for dtype in arguments.dtypes:
            if arguments.within is None or time.monotonic() - began < arguments.within:
                try:
                    selftest(op, dtype=dtype, device=arguments.device, options=choices, tell=tell)
                except KsearchError as error:
                    failed.append(f"{op} {dtype}: {first_line(error)}")
                    print(failed[-1], flush=True)
    columns = ("workload", "faults", "found", "survivors", "does not apply", "s")
    total, killed = sum(each["faults"] for each in rows), sum(each["found"] for each in rows)
    errors = "".join(f"\n- {error}" for error in failed)
    body = (
        f"{killed} of {total} planted faults found.\n\n{table(rows, columns)}\n\n"
        f"`s` is with the start of the worker and compiling.\n\n{table(verdicts(rows))}{errors}"
    )
    command = f"python scripts/bench_selftest.py --device {arguments.device}"
    save(arguments, backends.get(arguments.device.partition(":")[0]).target(0), rows, command, body=body)
    sys.exit(0 if killed == total and not failed else 1)


if __name__ == "__main__":
    main()

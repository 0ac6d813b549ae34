"""What a call, a lookup and a load cost on the host, beside PyTorch's own call of the same op.

python scripts/bench_dispatch.py                    # the first GPU, about a minute
python scripts/bench_dispatch.py --device cpu --name dispatch-cpu
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _bench import parser, save, table

import ksearch
from ksearch import backends, runtime
from ksearch.export.bundle import write_bundle
from ksearch.plan import Plan, make_plan
from ksearch.runtime import launcher, lookup
from ksearch.store import Store
from ksearch.types import Winner, Workload, canonical_json, digest

SHAPE = (4, 32)
"""So small that the device has done it before the host is back."""
CALLS, BATCHES = 200, 75
BUNDLED = 1000
TARGETS = {"handle, out=": 0.75, "handle": 1.0, "ksearch.ops": 1.2}
"""Of eager PyTorch, at most, on a GPU."""


def promoted(device: str, database: Path) -> tuple[Plan, Winner]:
    """The family's first guess, put in force without a search."""
    plan = make_plan("softmax", SHAPE, "float32", device, {})
    config = plan.guesses[0]
    compiled = plan.backend.compile(plan.render(config))
    winner = Winner(
        workload=plan.workload,
        target=plan.target,
        config=dict(config),
        launch=plan.family.launch(config, plan.program, plan.workload, plan.target),
        artifact=digest(compiled.binary),
        time_us=1.0,
        baseline_us=2.0,
        ceiling_us=1.0,
        certificate={"samples_us": [1.0] * 60},
        created="2026-01-01T00:00:00+00:00",
    )
    with Store.open(database) as store:
        store.promote(winner, source="text", binary=compiled.binary, environment={})
    return plan, winner


def per_call(device: str, mode: str) -> list[dict[str, Any]]:
    """Microseconds of the host for each call: medians of batches, all of them in turn."""
    runtime.refresh()
    x = torch.randn(SHAPE, device=device)
    out = torch.empty_like(x)
    handle = ksearch.load("softmax", SHAPE, device=device)
    if handle.kernel is None:
        raise SystemExit(f"no kernel to measure: {handle!r}")
    calls: dict[str, Callable[[], object]] = {
        "torch.softmax": lambda: torch.softmax(x, -1),
        "torch.softmax, out=": lambda: torch.softmax(x, -1, out=out),
        "torch.empty_like": lambda: torch.empty_like(x),
        "handle, out=": lambda: handle(x, out=out),
        "handle": lambda: handle(x),
        "ksearch.ops": lambda: ksearch.ops.softmax(x),
        "ksearch.ops, out=": lambda: ksearch.ops.softmax(x, out=out),
        "torch.ops.ksearch": lambda: torch.ops.ksearch.softmax.default(x),
    }
    torch.testing.assert_close(handle(x), torch.softmax(x, -1))
    found = in_turn(calls, device)
    rows = []
    for name, time_us in found.items():
        row = {"what": name + mode, "us": time_us, "of torch.softmax": time_us / found["torch.softmax"]}
        rows.append({**row, "at most": TARGETS[name]} if name in TARGETS else row)
    return rows


def graphs() -> dict[str, Callable[..., torch.Tensor]]:
    """Of one call each, as torch.compile makes them when they are first called."""
    torch._dynamo.reset()
    return {
        "torch.compile of torch.softmax": torch.compile(functools.partial(torch.softmax, dim=-1)),
        "torch.compile of ksearch.ops": torch.compile(ksearch.ops.softmax),
    }


def compiled(made: dict[str, Callable[..., torch.Tensor]], device: str, mode: str) -> list[dict[str, Any]]:
    """The same of those."""
    x = torch.randn(SHAPE, device=device)
    calls = {name + mode: functools.partial(graph, x) for name, graph in made.items()}
    with torch.no_grad():
        for call in calls.values():
            torch.testing.assert_close(call(), torch.softmax(x, -1))
        found = in_turn(calls, device)
    first, *_ = found.values()
    return [{"what": name, "us": us, "of torch's": us / first, "at most": 1.0} for name, us in found.items()]


def in_turn(calls: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(BATCHES):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            samples[name].append((time.perf_counter() - began) / CALLS * 1e6)
            if device != "cpu":
                torch.cuda.synchronize()  # the queue must never be full
    return {name: statistics.median(each) for name, each in samples.items()}


def fill(database: Path, winner: Winner, count: int) -> list[Workload]:
    """That many more winners, all with the same binary, of rows and columns of every size."""
    workloads = [
        replace(winner.workload, shape=(1 + number % 317, 33 + number // 317)) for number in range(count)
    ]
    connection = sqlite3.connect(database)
    (facts,) = connection.execute("SELECT * FROM winners").fetchall()
    names = [column[1] for column in connection.execute("PRAGMA table_info(winners)")]
    own = dict(zip(names, facts, strict=True))
    options = json.dumps([list(pair) for pair in winner.workload.options])
    keys = [workload.key for workload in workloads]
    connection.executemany(
        'INSERT INTO workloads (key, op, shape, rows, cols, "inner", dtype, options, program, layout, '
        "policy, regime) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
        [
            (
                *(key, each.op, "x".join(map(str, each.shape)), each.rows, each.cols, each.dtype, options),
                *(each.program, each.layout, each.policy, each.regime),
            )
            for key, each in zip(keys, workloads, strict=True)
        ],
    )
    held = [name for name in names if name != "id"]
    connection.executemany(
        f"INSERT INTO winners ({', '.join(held)}) VALUES ({', '.join('?' * len(held))})",
        [tuple({**own, "workload_key": key}[name] for name in held) for key in keys],
    )
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return workloads


def lookups(database: Path, workloads: Sequence[Workload], winner: Winner) -> list[dict[str, Any]]:
    """Of shapes that are met for the first time, after the first lookup."""
    chosen = workloads[:: max(1, len(workloads) // 500)]
    absent = [replace(each, dtype="bfloat16") for each in chosen]

    def found(workload: Workload) -> None:
        lookup.find(database, workload, winner.target)

    def missed(workload: Workload) -> None:
        try:
            lookup.find(database, workload, winner.target)
        except LookupError:
            lookup.neighbours(database, workload)

    rows = []
    for name, look, those in (("a winner", found, chosen), ("none, nor near", missed, absent)):
        samples = []
        for workload in those:
            began = time.perf_counter()
            look(workload)
            samples.append((time.perf_counter() - began) * 1e6)
        rows.append({"what": f"lookup, {name}", "us": statistics.median(samples), "at most": 50})
    return rows


def first_loads(device: str, database: Path, bundle: Path) -> list[dict[str, Any]]:
    """In new processes that have used the device before, as programs have that hold tensors."""
    code = f"""
        import time, torch, ksearch
        from ksearch import operators
        x = torch.randn({SHAPE}, device={device!r})
        operators.get("softmax").workload({SHAPE})
        load, load_bundle = ksearch.load, ksearch.load_bundle  # imports the runtime
        began = time.perf_counter()
        WHERE
        handle = where.load("softmax", {SHAPE}, device={device!r})
        took = time.perf_counter() - began
        assert handle.kernel is not None, handle
        torch.testing.assert_close(handle(x), torch.softmax(x, -1))
        print(1e3 * took)
    """
    rows = []
    for name, where, most in (
        ("the database", "where = ksearch", 30),
        ("a bundle", f"where = ksearch.load_bundle({str(bundle)!r})", 15),
    ):
        program = textwrap.dedent(code).replace("WHERE", where)
        samples = [float(run(program, KSEARCH_DB=str(database))) for _ in range(5)]
        rows.append({"what": f"first load from {name}", "ms": statistics.median(samples), "at most": most})
    return rows


def imports() -> dict[str, Any]:
    """What `import ksearch`, and its runtime, add to `import torch`."""
    code = "import time, torch; began = time.perf_counter(); import ksearch{}; "
    code += "print(1e3 * (time.perf_counter() - began))"
    both = (code.format(""), code.format(", ksearch.ops"))
    plain, whole = ([float(run(program)) for _ in range(5)] for program in both)
    row = {"what": "import ksearch, after torch", "ms": statistics.median(plain), "at most": 60}
    return {**row, "with ksearch.ops, ms": statistics.median(whole)}


def run(program: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def main() -> None:
    arguments = parser(__doc__, "dispatch-h200")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--winners", type=int, default=100_000)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database, bundle = Path(folder, "bench.db"), Path(folder, "bench.ksb")
        os.environ.update(KSEARCH_DB=str(database), KSEARCH_CACHE_DIR=str(Path(folder, "cache")))
        plan, winner = promoted(given.device, database)
        os.environ["KSEARCH_LAUNCHER"] = str(Path(folder, "launcher.so"))
        calls = per_call(given.device, "")
        made = graphs()
        called = compiled(made, given.device, "")
        began = time.perf_counter()
        launcher.build(Path(folder, "launcher.so"))
        build_s = time.perf_counter() - began
        launched = per_call(given.device, ", launcher")
        with torch.inference_mode():
            launched += per_call(given.device, ", launcher, inference mode")
        called += compiled(made, given.device, ", launcher")
        runtime.refresh()
        workloads = fill(database, winner, given.winners)
        with Store.open(database) as store:
            chosen = [replace(winner, workload=each) for each in workloads[:BUNDLED]]
            write_bundle(bundle, store, [winner, *chosen])
        others = [*first_loads(given.device, database, bundle), imports()]
        looked = lookups(database, workloads, winner)
    calls += launched
    facts = {
        "launcher built in": f"{build_s:.0f} s",
        "winners": str(given.winners),
        "winners in the bundle": str(1 + BUNDLED),
    }
    shape = "x".join(map(str, SHAPE))
    body = f"Host time of a call, shape {shape}, config `{canonical_json(winner.config)}`:\n\n"
    body += table(calls) + "\n\n" + table(called) + "\n\n" + table(looked) + "\n\n" + table(others)
    command = f"python scripts/bench_dispatch.py --device {given.device}"
    rows = [*calls, *called, *looked, *others, {"what": "launch", **asdict(winner)["launch"]}]
    save(given, backends.get(plan.target.backend).target(), rows, command, body=body, more_facts=facts)


if __name__ == "__main__":
    main()

"""A database as a busy year leaves it, made in under a minute: 100,000 winners and 1,000,000 trials.

    PYTHONPATH=. python tests/big_database.py big.db [WINNERS [TRIALS]]

The rows look as real ones do (certificates of 2.7 KB, 200 trials to a search, some of them failed) and are
the same in every run, but for the ages, which count back from `until`. They go in by plain SQL: through
`Store` it would take an hour.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from ksearch import operators
from ksearch.launch import Launch
from ksearch.store import Store
from ksearch.types import Status, Target, Workload, canonical_json, digest

OPS = (
    "softmax", "log_softmax", "rmsnorm", "layernorm", "add_rmsnorm", "l2norm", "gelu", "silu", "sigmoid",
    "swiglu", "add", "softmax_backward", "linear", "linear_gelu", "linear_sigmoid_sum",
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")
TARGETS = (
    Target("cuda", "sm_90", "NVIDIA H200", 0, 132, 150 << 30, 232448, 60 << 20),
    Target("cuda", "sm_80", "NVIDIA A100-SXM4-80GB", 0, 108, 80 << 30, 166912, 40 << 20),
    Target("cuda", "sm_89", "NVIDIA L40S", 0, 142, 44 << 30, 101376, 96 << 20),
    Target("cpu", "x86_64-avx512", "AMD EPYC 9654, 96 threads", 0, 96, 0, 0, 384 << 20),
)
SEARCHED = 20
"""One winner in as many has its trials here; the others came in bundles."""
LOST = 12
"""In one place out of as many PyTorch won."""
REPLACED = 50
"""One winner in as many has one before it."""
DAYS = 365
_BANDWIDTH = {"NVIDIA H200": 4.0e6, "NVIDIA A100-SXM4-80GB": 1.7e6, "NVIDIA L40S": 0.75e6}
"""Bytes in a microsecond; else 0.3e6."""
_PARAMETERS: dict[str, dict[str, Sequence[int | bool | str]]] = {
    "cuda": {
        "block": (128, 256, 512, 1024),
        "vector": (1, 2, 4, 8),
        "cluster": (1, 2, 4, 8),
        "keep": ("registers", "shared", "again"),
        "prefetch": (False, True),
        "online": (False, True),
        "load": ("plain", "nc", "evict_first"),
    },
    "cpu": {
        "simd": (16, 32, 64),
        "unroll": (1, 2, 4, 8),
        "threads": (48, 96),
        "rows_per_task": (0, 1, 16),
        "store": ("temporal", "stream"),
        "prefetch": (False, True),
        "online": (False, True),
    },
}
_FAILURES = (
    (Status.WRONG, "row 3, column 17: 0.0 instead of 0.0123 (regime normal)"),
    (Status.COMPILE_ERROR, "rowwise.cu.j2:31: error: expected a ';' <here>"),
    (Status.TIMEOUT, "not done after 10 s"),
    (Status.NONDETERMINISTIC, "two runs differ in 12 elements"),
)
_Row: TypeAlias = tuple[Any, ...]
_Place: TypeAlias = tuple[str, Workload, int]
"""A workload's key, the workload, and which of TARGETS."""


def make(
    path: Path,
    winners: int = 100_000,
    trials: int = 1_000_000,
    *,
    seed: int = 0,
    until: datetime | None = None,
) -> None:
    """Fill a new database at `path`; the file must not exist.

    `winners` are in force, and one in REPLACED has one before it; every SEARCHEDth has its share of the
    trials. The youngest is from `until` (default: now), the oldest from a year before.
    """
    if path.exists():
        raise FileExistsError(path)
    Store.open(path).close()
    rng = random.Random(seed)
    until = until or datetime.now(UTC)
    taken = itertools.islice(workloads(), -(-winners // len(TARGETS)))
    # keys are computed once, and rows come in the order of their index: each halves the time
    found = sorted((workload.key, workload) for workload in taken)
    places = [(key, workload, index) for key, workload in found for index in range(len(TARGETS))][:winners]
    measured = {target.backend: _Pool(target.backend, rng) for target in TARGETS}
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        with connection:
            _insert(connection, "targets", map(_target, itertools.count(1), TARGETS))
            _insert(connection, "workloads", itertools.starmap(_workload, found))
            _insert(connection, "environments", (_ENVIRONMENT,))
            _insert(connection, "artifacts", (row for pool in measured.values() for row in pool.artifacts()))
            _insert(connection, "winners", _winners(places, measured, rng, until))
        with connection:
            _insert(connection, "evaluations", _trials(places[::SEARCHED], trials, measured, until))


def workloads() -> Iterator[Workload]:
    """Of every op and dtype, small shapes before large ones; without end."""
    ops = [operators.get(name) for name in OPS]
    known = {
        (op.name, dtype): op.workload((8, 64, 64) if op.program().linear else (8, 64), dtype)
        for op in ops
        for dtype in DTYPES
    }
    for size in itertools.count():
        cols = 256 * (size // 12 + 1)
        rows = 2 ** (size % 12 + 1)
        for workload in known.values():
            inner = 512 * (size % 7 + 1) if workload.inner else 0
            yield replace(workload, shape=(rows, cols), inner=inner)


class _Pool:
    """Configs, kernels and measurements of one backend, to be drawn from."""

    def __init__(self, backend: str, rng: random.Random) -> None:
        values = _PARAMETERS[backend]
        self.backend = backend
        every = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
        self.configs = rng.sample(every, 200)
        self.texts = [json.dumps(config) for config in self.configs]
        self.digests = [digest(canonical_json(config))[:32] for config in self.configs]
        weights = {name: rng.random() for name in values}
        costs = [
            sum(weights[name] * list(values[name]).index(value) for name, value in config.items())
            for config in self.configs
        ]
        self.slower = [1.0 + (cost - min(costs)) ** 2 / 10 for cost in costs]
        """How much slower a config is than the best of them."""
        self.best = self.slower.index(1.0)
        self.binaries = [rng.randbytes(4096) for _ in range(32)]
        launch = Launch(threads=96) if backend == "cpu" else Launch(block=256, work_per_block=1)
        self.launch = json.dumps(asdict(launch))
        self._measured: dict[float, list[tuple[float, float, str]]] = {}

    def measurement(self, ceiling_us: float, rng: random.Random) -> tuple[float, float, str]:
        """The times of a kernel and of PyTorch beside that ceiling, and the certificate: one of a few."""
        if ceiling_us not in self._measured:
            self._measured[ceiling_us] = [self._measure(ceiling_us, rng) for _ in range(30)]
        return rng.choice(self._measured[ceiling_us])

    def _measure(self, ceiling_us: float, rng: random.Random) -> tuple[float, float, str]:
        ours = ceiling_us * (1.0 + rng.expovariate(8.0))
        theirs = ours * (1.0 + rng.expovariate(2.0))
        samples = {
            name: [round(time_us * rng.lognormvariate(0, 0.02), 3) for _ in range(60)]
            for name, time_us in (
                ("samples", ours), ("baseline_samples", theirs), ("ceiling_samples", ceiling_us)
            )
        }  # fmt: skip
        certificate = {
            "seed": 0,
            **{f"{name}_us": times for name, times in samples.items()},
            "fastest_config": self.configs[self.best],
            "spread_us": round(0.015 * ours, 3),
            "speedup_ci": [theirs / ours * 0.99, theirs / ours * 1.01],
            "error": 0.3,
            "errors": {"normal": {"kernel": 1.1e-7, "pytorch": 1.3e-7}},
            "registers": 40,
            "spill_bytes": 0,
            "source_key": digest("source"),
            "runner_up_config": self.configs[self.best - 1],
            "over_runner_up_ci": [1.0, 1.03],
            "trials": 200,
            "failures": {"wrong": 5, "compile_error": 5},
            "ended": "converged",
            "near": [],
        }
        return ours, theirs, json.dumps(certificate)

    def artifacts(self) -> Iterator[_Row]:
        for number, binary in enumerate(self.binaries):
            body = "float f(float x) { return x < 0 ? 0 : x; }\n" * 100
            yield digest(binary), f"// kernel {number} of {self.backend}\n{body}", binary, ""


def _target(number: int, target: Target) -> _Row:
    return (
        number, target.key, target.backend, target.arch, target.device, target.index, target.units,
        target.memory_bytes, target.smem_bytes, target.cache_bytes,
    )  # fmt: skip


def _workload(key: str, workload: Workload) -> _Row:
    return (
        key, workload.op, "x".join(map(str, workload.shape)), workload.rows, workload.cols,
        workload.inner, workload.dtype, json.dumps(workload.options), workload.program, workload.layout,
        workload.policy, workload.regime,
    )  # fmt: skip


_VERSIONS = {"ksearch": "0.1.0", "python": "3.12.3", "torch": "2.13.0", "driver": "580.95"}
_ENVIRONMENT = (digest(canonical_json(_VERSIONS))[:32], json.dumps(_VERSIONS))


def ceiling_us(workload: Workload, target: Target) -> float:
    """As a machine of its bandwidth has it, with 2 us to start a kernel, to a few percent."""
    per_us = _BANDWIDTH.get(target.device, 0.3e6)
    moved = (2 * workload.numel + workload.inner * workload.cols) * workload.itemsize
    return round(1.1 ** round(math.log(2.0 + moved / per_us, 1.1)), 3)


def _winners(
    places: Iterable[_Place], pools: Mapping[str, _Pool], rng: random.Random, until: datetime
) -> Iterator[_Row]:
    for number, (key, workload, index) in enumerate(places):
        target = TARGETS[index]
        pool = pools[target.backend]
        ceiling = ceiling_us(workload, target)
        for superseded in (True, False) if number % REPLACED == 0 else (False,):
            ours, theirs, certificate = pool.measurement(ceiling, rng)
            lost = number % LOST == LOST - 1
            at = until - timedelta(days=DAYS * (rng.random() if not superseded else 1.0))
            binary = None if lost else digest(pool.binaries[number % len(pool.binaries)])
            yield (
                key, index + 1, target.key, None if lost else pool.texts[pool.best],
                None if lost else pool.launch, binary, theirs if lost else ours, theirs, ceiling,
                certificate, _ENVIRONMENT[0], at.isoformat(timespec="seconds"),
                until.isoformat(timespec="microseconds") if superseded else None,
            )  # fmt: skip


def _trials(
    places: Sequence[_Place], count: int, pools: Mapping[str, _Pool], until: datetime
) -> Iterator[_Row]:
    """The same number for each place, 200 where there are as many winners as trials ask for."""
    each = math.ceil(count / len(places))
    made = 0
    for key, workload, index in places:
        target = TARGETS[index]
        pool = pools[target.backend]
        ceiling = ceiling_us(workload, target)
        study = f"{workload} on {target.backend}/{target.device} [{key[:8]}]"
        rng = random.Random(key)
        order = rng.sample(range(len(pool.configs)), len(pool.configs))
        begun = until - timedelta(days=DAYS * rng.random())
        for number in range(min(each, count - made)):
            chosen = order[number % len(order)]
            failed = _FAILURES[number // 10 % len(_FAILURES)] if number % 10 == 9 else None
            at = begun + timedelta(seconds=0.4 * number)
            ours = None if failed else ceiling * (1.1 * pool.slower[chosen])
            yield (
                key, index + 1, f"{study} {number // len(order)}", number,
                pool.texts[chosen], pool.digests[chosen], str(failed[0] if failed else Status.PASSED), ours,
                0.0 if ours is None else 0.01 * ours, 0 if ours is None else 50, 0.2,
                failed[1] if failed else "", pool.digests[chosen], pool.digests[chosen], 40, 0, 0.2,
                at.isoformat(timespec="microseconds"),
            )  # fmt: skip
            made += 1


_COLUMNS = {
    "targets": "id key backend arch device index units memory_bytes smem_bytes cache_bytes",
    "workloads": "key op shape rows cols inner dtype options program layout policy regime",
    "environments": "digest versions",
    "artifacts": "digest source binary log",
    "winners": "workload_key target_id target_key config launch artifact_digest time_us baseline_us "
    "ceiling_us certificate environment_digest created superseded",
    "evaluations": "workload_key target_id study number config config_digest status time_us spread_us "
    "repeats error message artifact_key artifact_digest registers spill_bytes compile_s created",
}


def _insert(connection: sqlite3.Connection, table: str, rows: Iterable[_Row]) -> None:
    columns = [f'"{name}"' for name in _COLUMNS[table].split()]
    marks = ", ".join("?" * len(columns))
    connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)


if __name__ == "__main__":
    began = time.monotonic()
    make(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    size = Path(sys.argv[1]).stat().st_size / 1e6
    print(f"{sys.argv[1]}: {size:.0f} MB in {time.monotonic() - began:.1f} s")

"""A small database to browse: four workloads, two devices, PyTorch once, and a search without a winner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ksearch import operators
from ksearch.launch import Launch
from ksearch.store import Store
from ksearch.types import ConfigValue, Outcome, Status, Target, Winner, Workload, digest

CPU = Target("cpu", "x86_64-avx2", "Some CPU [2 threads]", units=2)
H200 = Target("cuda", "sm_90", "NVIDIA H200", units=132)
SOFTMAX = operators.get("softmax").workload((64, 256))
WIDE = operators.get("softmax").workload((8, 65536))
HALF = operators.get("softmax").workload((64, 256), "float16")
LINEAR = operators.get("linear").workload((32, 256, 128))
BEGUN = operators.get("gelu").workload((64, 256))
"""All of its candidates failed, and it has no winner."""
_BINARY = b"\x7fELF not really"


def winner(
    workload: Workload,
    target: Target,
    times_us: tuple[float, float, float],
    days: float,
    config: Mapping[str, ConfigValue] | None = None,
) -> Winner:
    """With the times of what runs, of PyTorch and of the ceiling, found so many days ago."""
    created = datetime.now(UTC) - timedelta(days=days)
    found = Winner(
        workload=workload,
        target=target,
        config=None if config is None else dict(config),
        launch=None if config is None else Launch(threads=2),
        artifact=None if config is None else digest(_BINARY),
        time_us=times_us[0],
        baseline_us=times_us[1],
        ceiling_us=times_us[2],
        created=created.isoformat(timespec="seconds"),
    )
    sure = [found.speedup - 0.1, found.speedup + 0.1]
    return replace(found, certificate={"speedup_ci": sure, "seed": 0, "samples_us": [times_us[0]] * 9})


def fill(path: Path) -> None:
    """Put it there."""
    with Store.open(path) as store:
        for found in (
            winner(SOFTMAX, CPU, (10.0, 15.0, 8.0), 40, {"simd": 32, "unroll": 2}),
            winner(SOFTMAX, H200, (5.0, 6.0, 4.0), 3, {"block": 256, "vec": 4, "math": "exact"}),
            winner(HALF, H200, (3.0, 6.0, 2.5), 3, {"block": 128, "vec": 8, "math": "exact"}),
            winner(WIDE, H200, (90.0, 90.0, 60.0), 0.1),
            winner(LINEAR, H200, (20.0, 30.0, 25.0), 100, {"tile_n": 64}),
        ):
            is_kernel = found.config is not None
            store.promote(
                found,
                source="// the source\n" if is_kernel else None,
                binary=_BINARY if is_kernel else None,
                environment={"torch": "2.13.0", "device": found.target.device},
            )
        wrong = Outcome(Status.WRONG, message="row 3 is zero")
        for number, outcome in enumerate([wrong, Outcome(Status.PASSED, time_us=12.0), wrong]):
            store.record(SOFTMAX, CPU, "study", number, {"simd": number}, outcome)
        for number, status in enumerate((Status.WRONG, Status.WRONG, Status.TIMEOUT)):
            store.record(BEGUN, CPU, "begun", number, {"simd": number}, Outcome(status, message="no"))

"""A small database with one of everything that a page has to show, made without tuning."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ksearch import operators
from ksearch.launch import Launch
from ksearch.store import Store
from ksearch.types import Artifact, Outcome, Status, Target, Winner, Workload, digest

CPU = Target("cpu", "x86_64-avx512", "Some CPU, 2 threads", units=2)
GPU = Target("cuda", "sm_90", "NVIDIA H200", units=132)

NASTY = "</script><img src=x onerror=alert(1)>&\"'`|*_"
"""What a message or a text in a config may hold."""

SOURCE = '// a <b>kernel</b> & more\nextern "C" void ksearch_kernel(const float* x, float* y, long rows) {}\n'

_TRIALS = 24
_ROUNDS = 12


def workload(op: str, shape: tuple[int, ...], dtype: str = "float32", **options: Any) -> Workload:
    return operators.get(op).workload(shape, dtype, **options)


SOFTMAX = workload("softmax", (256, 1024))
GELU = workload("gelu", (512, 2048), "bfloat16")
LINEAR = workload("linear", (64, 512, 256))
OWN = Workload("my_op", (128, 128), program="0123456789abcdef")
FAILED = workload("rmsnorm", (64, 777))
RUNNING = workload("layernorm", (128, 4096), "float16")


def make(path: Path) -> Path:
    """Kernels on two devices, one that PyTorch won, an op that is not known here, a search that runs, and one
    of failures only."""
    with Store.open(path) as store:
        add_search(store, SOFTMAX, CPU, failing=5)
        add_winner(store, SOFTMAX, CPU, 50.0)
        add_search(store, SOFTMAX, GPU)
        add_winner(
            store, SOFTMAX, GPU, 4.0, runner_up_samples_us=samples(4.2), peers={"triton": samples(5.0)}
        )
        add_winner(store, GELU, CPU, None, alarm="1.20 times the speed of the ceiling: is the machine quiet?")
        add_search(store, LINEAR, GPU)
        add_winner(store, LINEAR, GPU, 9.0)
        add_winner(store, OWN, CPU, 20.0, errors="none", near=[[64, 1.5], [128, 2.0]])
        add_search(store, RUNNING, CPU, failing=1)
        add_search(store, FAILED, CPU, failing=_TRIALS)
    return path


def samples(middle_us: float, seed: int = 0) -> list[float]:
    draw = random.Random(f"{middle_us} {seed}")
    return [middle_us * draw.uniform(0.97, 1.05) for _ in range(_ROUNDS)]


def study(workload: Workload, target: Target) -> str:
    return f"{workload} on {target.key}"


def add_search(store: Store, workload: Workload, target: Target, failing: int = 0) -> None:
    """Candidates of which the first `failing` fail, for two reasons, with messages of HTML."""
    draw = random.Random(workload.key)
    for number in range(_TRIALS):
        config = {
            "block": 64 << number % 3,
            "unroll": 1 << number // 6,
            "store": ("stream", "temporal")[number % 2],
            "vector": number,
        }
        if number < failing:
            status = (Status.WRONG, Status.COMPILE_ERROR)[number % 3 == 0]
            outcome = Outcome(status, message=f"off by 3e-2 {NASTY}")
        else:
            outcome = Outcome(Status.PASSED, draw.uniform(50.0, 400.0), 1.0, 20, 0.5)
        artifact = Artifact(f"key{number}", "", "", digest(f"{workload.key} {number}"), compile_s=0.5)
        store.record(workload, target, study(workload, target), number, config, outcome, artifact)


def add_winner(
    store: Store, workload: Workload, target: Target, time_us: float | None, **certificate: Any
) -> None:
    """At that time beside a PyTorch of 100 us and a ceiling of 80 % of the kernel's; None: PyTorch won."""
    won = time_us is not None
    kernel_us = time_us if time_us is not None else 101.0
    binary = f"{workload.key} {target.key}".encode()
    known = {
        "samples_us": samples(kernel_us),
        "baseline_samples_us": samples(100.0, 1),
        "ceiling_samples_us": samples(0.8 * kernel_us, 2),
        "speedup_ci": [95.0 / kernel_us, 105.0 / kernel_us],
        "over_runner_up_ci": [1.01, 1.04],
        "errors": {"uniform": {"kernel": 1e-7, "pytorch": 2e-7}, NASTY: {"kernel": 0.0, "pytorch": None}},
        "fastest_config": {"block": 128, "store": NASTY},
        "runner_up_config": {"block": 64, "store": NASTY},
        "study": study(workload, target),
        "near": [[rows, 1.5] for rows in (32, 64, 128)],
        **certificate,
    }
    winner = Winner(
        workload=workload,
        target=target,
        config={"block": 128, "store": NASTY} if won else None,
        launch=Launch(block=128, smem_bytes=4096) if won else None,
        artifact=digest(binary) if won else None,
        time_us=kernel_us if won else 100.0,
        baseline_us=100.0,
        ceiling_us=0.8 * kernel_us,
        certificate=known,
        created="2025-01-02T12:00:00+00:00",
    )
    store.promote(
        winner,
        source=SOURCE if won else None,
        binary=binary if won else None,
        environment={"torch": "2.13.0", "device": NASTY},
    )

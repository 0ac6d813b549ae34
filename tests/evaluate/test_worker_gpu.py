"""The worker on a GPU: the same planted errors, CUDA's own faults, memory and cost."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import backends, operators
from ksearch.evaluate.messages import Job, Ready
from ksearch.evaluate.worker import Worker
from ksearch.launch import Launch
from ksearch.types import Candidate, Status
from tests.evaluate import kernels

pytestmark = pytest.mark.gpu

ROWS, COLS = 301, 1000
LAUNCH = Launch(work_per_row=1, work_per_block=1, block=32)


def job(shape: tuple[int, ...] = (ROWS, COLS)) -> Job:
    found = operators.resolve("softmax")
    return Job(
        found.location, found.workload(shape), backends.get("cuda").target(), memory_limit_bytes=32 << 30
    )


def build(body: str, folder: Path, cols: int = COLS) -> Candidate:
    return kernels.build(body, cols, folder, LAUNCH, backends.get("cuda").target().arch)


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Worker, Ready]]:
    with Worker(job(), timeout_s=4.0) as worker:
        yield worker, worker.start()


@pytest.fixture(scope="module")
def right(folder: Path) -> Candidate:
    return build(kernels.CUDA_SOFTMAX, folder)


def test_start_tells_the_state_of_the_device(started: tuple[Worker, Ready]) -> None:
    ready = started[1]
    assert ready.baseline_us > 1
    assert ready.ceiling_us > 1
    assert {"cuda", "device", "torch"} <= set(ready.environment)


def test_a_right_kernel_passes_with_a_time(worker: Worker, right: Candidate) -> None:
    outcome = worker.screen(right)
    assert outcome.status is Status.PASSED, outcome
    assert outcome.time_us is not None
    assert outcome.time_us > 10
    assert outcome.repeats >= 5


@pytest.mark.parametrize("name", kernels.CUDA_WRONG)
def test_every_planted_error_gets_its_status(
    name: str, worker: Worker, right: Candidate, folder: Path
) -> None:
    body, status, message = kernels.CUDA_WRONG[name]
    respawns = worker.respawns
    outcome = worker.screen(build(body, folder))
    assert outcome.status is status, outcome
    assert re.search(message, outcome.message), outcome.message
    assert worker.screen(right).status is Status.PASSED
    harmless = status in (Status.WRONG, Status.NONDETERMINISTIC)
    assert worker.respawns == respawns + (0 if harmless else 1)


def test_an_error_in_one_of_two_outputs_is_found_and_said(folder: Path) -> None:
    ops = folder / "pair_op.py"
    ops.write_text("import ksearch\n@ksearch.op\ndef sum_and_difference(x, y):\n    return x + y, x - y\n")
    found, device = operators.resolve(f"{ops}:sum_and_difference"), backends.get("cuda").target()

    def make(body: str) -> Candidate:
        return kernels.build(body, COLS, folder, LAUNCH, device.arch, kernels.CUDA_PAIR_PROLOGUE)

    with Worker(Job(found.location, found.workload((ROWS, COLS)), device)) as worker:
        worker.start()
        assert worker.screen(make(kernels.CUDA_PAIR)).status is Status.PASSED
        for body, status, message in kernels.CUDA_PAIR_WRONG.values():
            outcome = worker.screen(make(body))
            assert outcome.status is status, outcome
            assert re.match(message, outcome.message), outcome.message
        (entry,) = worker.finals([make(kernels.CUDA_PAIR)], budget_s=0.2).entries
        assert entry.outcome.status is Status.PASSED


def test_what_the_driver_refuses_is_a_launch_error_and_costs_nothing(
    worker: Worker, right: Candidate
) -> None:
    respawns = worker.respawns
    for launch in (Launch(block=2048), Launch(block=32, smem_bytes=1 << 20)):
        outcome = worker.screen(Candidate({}, launch, right.artifact))
        assert outcome.status is Status.LAUNCH_ERROR, outcome
    assert worker.screen(right).status is Status.PASSED
    assert worker.respawns == respawns


def test_finals_race_on_the_gpu(worker: Worker, right: Candidate, folder: Path) -> None:
    slower = build(kernels.CUDA_SOFTMAX * 4, folder)
    finals = worker.finals([slower, right], budget_s=1.0)
    slow, fast = (entry.outcome for entry in finals.entries)
    assert slow.status is fast.status is Status.PASSED
    assert slow.time_us is not None
    assert fast.time_us is not None
    assert slow.time_us > 1.5 * fast.time_us
    assert {len(entry.samples_us) for entry in finals.entries} == {len(finals.baseline_us)}


def test_the_parent_makes_no_context(folder: Path) -> None:
    script = (
        "from tests.evaluate.test_worker_gpu import job\n"
        "from ksearch.evaluate.worker import Worker\n"
        "with Worker(job()) as worker: worker.start()\n"
        "import torch; print(torch.cuda.is_initialized())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


@pytest.mark.gpu_memory("large")
@pytest.mark.slow
def test_a_workload_of_6_gb_stays_below_32_gb(folder: Path) -> None:
    """PyTorch itself as the finalist, copied: the memory is what is tested."""
    with Worker(job((4096, 393216)), timeout_s=60) as worker:
        ready = worker.start()
        candidate = build(kernels.CUDA_SOFTMAX.replace("i < COLS", "i < 8"), folder, 393216)
        began = time.perf_counter()
        finals = worker.finals([candidate], budget_s=2.0)
        assert time.perf_counter() - began < 60
        assert finals.entries[0].outcome.status is Status.WRONG
        assert len(finals.baseline_us) >= 3
    assert ready.memory_bytes < 24 << 30

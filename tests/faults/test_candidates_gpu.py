"""The worst that a kernel can do on a GPU: each is an outcome with its reason, and the next is judged."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import backends, operators
from ksearch.errors import BadShape, WorkerError
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.launch import Launch
from ksearch.types import Candidate, Status
from tests.evaluate import kernels
from tests.faults import planted
from tests.faults.told import Told

pytestmark = pytest.mark.gpu

ROWS, COLS = 300, 1000

TAKE = """
import sys, torch
free, total = torch.cuda.mem_get_info()
taken = torch.empty(free - (1 << 29), dtype=torch.uint8, device="cuda")
print("taken", flush=True)
sys.stdin.readline()
"""


def job(shape: tuple[int, int] = (ROWS, COLS)) -> Job:
    found = operators.resolve("softmax")
    return Job(found.location, found.workload(shape), backends.get("cuda").target())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("binaries")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(job(), timeout_s=3.0) as worker:
        worker.start()
        yield worker


@pytest.fixture(scope="module")
def right(folder: Path) -> Candidate:
    arch = backends.get("cuda").target().arch
    return kernels.build(kernels.CUDA_SOFTMAX, COLS, folder, Launch(block=32), arch)


@pytest.mark.parametrize("name", planted.CUDA)
def test_a_kernel_costs_itself_alone(
    name: str, worker: Worker, right: Candidate, folder: Path, told: Told
) -> None:
    body, prologue, launch, status, message = planted.CUDA[name]
    arch = backends.get("cuda").target().arch
    if launch.cluster > 1 and int(arch.removeprefix("sm_")) < 90:
        pytest.skip(f"{arch} has no clusters")
    outcome = worker.screen(kernels.build(body, COLS, folder, launch, arch, prologue))
    assert outcome.status is status, outcome
    assert re.search(message, outcome.message), outcome.message
    assert "\n" not in outcome.message
    assert worker.screen(right).status is Status.PASSED
    told(f"kernel: {name}", outcome)


@pytest.mark.gpu_memory("whole")
def test_memory_that_another_process_has_taken_is_said(told: Told) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TAKE], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        with Worker(job((65536, 8192))) as worker, pytest.raises((BadShape, WorkerError)) as caught:
            worker.start()
        other.communicate("go\n", timeout=60)
    assert re.search("(?i)memory", str(caught.value)), caught.value
    told("GPU memory taken by another process", caught.value)
    deadline = time.monotonic() + 30
    while True:  # the driver takes a moment to have it back
        try:
            with Worker(job((65536, 8192))) as worker:
                assert worker.start().baseline_us > 1
            break
        except (BadShape, WorkerError):
            assert time.monotonic() < deadline

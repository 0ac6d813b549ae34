"""The worst that a candidate can do: each is an outcome with its reason, and the next is judged."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch.evaluate import process
from ksearch.evaluate.process import Child
from ksearch.evaluate.worker import Worker
from ksearch.types import Candidate, Status
from tests.evaluate import kernels
from tests.evaluate.test_worker import job
from tests.faults import planted
from tests.faults.told import Told

ROWS, COLS = 16, 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("binaries")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(job(shape=(ROWS, COLS), memory_limit_bytes=1 << 29), timeout_s=2.0) as worker:
        worker.start()
        yield worker


@pytest.fixture(scope="module")
def right(folder: Path) -> Candidate:
    return kernels.build(kernels.CPU_SOFTMAX, COLS, folder)


@pytest.mark.parametrize("name", planted.CPU)
def test_a_kernel_costs_itself_alone(
    name: str, worker: Worker, right: Candidate, folder: Path, told: Told
) -> None:
    body, status, message = planted.CPU[name]
    candidate = kernels.build(body, COLS, folder, prologue=planted.CPU_PROLOGUE)
    outcome = worker.screen(candidate)
    assert outcome.status is status, outcome
    assert re.search(message, outcome.message), outcome.message
    assert "\n" not in outcome.message
    assert worker.screen(right).status is Status.PASSED
    told(f"kernel: {name}", outcome)


def test_what_one_damaged_is_not_held_against_another(worker: Worker, right: Candidate, folder: Path) -> None:
    """The damage is done in a run whose own result is not judged by what it damages."""
    late = planted.NEIGHBOUR_LATE
    assert worker.screen(kernels.build(late, COLS, folder, prologue=planted.CPU_PROLOGUE)).status is (
        Status.PASSED
    )
    respawns = worker.respawns
    assert worker.screen(right).status is Status.PASSED
    assert worker.respawns == respawns + 1


def test_a_binary_that_is_not_what_was_compiled_is_not_loaded(
    worker: Worker, right: Candidate, folder: Path, told: Told
) -> None:
    path = folder / "swapped.so"
    path.write_bytes(Path(right.artifact.binary).read_bytes() + b"\0")
    artifact = type(right.artifact)("k", str(folder), str(path), right.artifact.digest)
    outcome = worker.screen(Candidate({}, right.launch, artifact))
    assert outcome.status is Status.LAUNCH_ERROR
    assert "is not what was compiled: its SHA-256 differs" in outcome.message
    told("binary changed on disk", outcome)


def test_children_leave_no_cores_and_no_large_files() -> None:
    with Child("tests.faults.answers:open_limits") as child:
        core, size, score = child.call(None, 20)
    assert core == (0, 0)
    assert size[0] == process._FILE_BYTES
    assert score == "1000"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != process._FILE_BYTES, "of the child alone"

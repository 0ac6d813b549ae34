from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import ksearch
from ksearch import backends, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.process import Child

ROOT = Path(ksearch.__file__).parents[1]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc's malloc only")
def test_pytorch_is_not_charged_for_page_faults() -> None:
    """A result of 32 MB is 8192 pages; given back and asked for in each call, they made it 3 times slower."""
    script = (
        "import resource, torch\n"
        "from ksearch.evaluate import memory, session\n"  # a worker has imported all of it
        "memory.keep_heap()\n"
        "x = torch.rand(2048, 4096)\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(3): x.sigmoid()\n"
        "before = faults()\n"
        "for _ in range(5): x.sigmoid()\n"
        "print(faults() - before)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=ROOT)
    assert int(output) < 20_000  # of 40960; one call in five was charged on a busy machine


@pytest.mark.parametrize(("policy", "precision"), [("strict", "highest"), ("tf32", "high")])
def test_the_policy_decides_on_tf32_whatever_the_environment_says(policy: str, precision: str) -> None:
    script = (
        "import torch\n"
        "from ksearch import backends, operators\n"
        "from ksearch.evaluate.messages import Job\n"
        "from ksearch.evaluate.session import Session\n"
        f"workload = operators.get('linear').workload((3, 4, 5), policy={policy!r})\n"
        "Session(Job('linear', workload, backends.get('cpu').target()))\n"
        "print(torch.get_float32_matmul_precision())\n"
    )
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1" if policy == "strict" else "0"}
    command = [sys.executable, "-c", script]
    output = subprocess.check_output(command, text=True, cwd=ROOT, env=environment)
    assert output.strip() == precision


@pytest.mark.parametrize(("op", "shape"), [("linear_relu", (64, 256, 256)), ("sigmoid", (64, 256))])
def test_a_race_times_the_copy_where_the_ceiling_is_a_product(op: str, shape: tuple[int, ...]) -> None:
    workload = operators.get(op).workload(shape)
    with Child("ksearch.evaluate.session:open_session") as child:
        child.call(("open", Job(op, workload, backends.get("cpu").target())), 120)
        laps = child.call(("race", [], 0.1), 120)
    assert len(laps.baseline_us) == len(laps.ceiling_us) >= 3
    assert len(laps.copy_us) == (len(laps.ceiling_us) if workload.inner else 0)
    assert statistics.median(laps.copy_us or [0.0]) < statistics.median(laps.ceiling_us)
    assert [each.when for each in laps.conditions] == ["before", "after"]
    assert "load_average" not in laps.environment


def test_a_spare_has_imported_torch_and_opened_nothing() -> None:
    with Child("ksearch.evaluate.session:open_session") as spare:
        assert spare.call(None, 120) is None
        assert spare.is_alive


_SCRATCH = """
import ctypes, torch
from ksearch import backends, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.session import Session
from ksearch.launch import Launch
from ksearch.types import Artifact, Candidate

ROWS, COLS, BYTES = 40, 64, 256

class Kernel:
    def __call__(self, pointers, rows, stream):
        at = [(ctypes.c_float * size).from_address(pointer)
              for pointer, size in zip(pointers, (rows * COLS, rows * COLS, BYTES // 4 + 1))]
        x, out, scratch = (torch.frombuffer(each, dtype=torch.float32) for each in at)
        out.copy_(x.relu())
        {fault}
    def unload(self):
        pass

workload = operators.get("relu").workload((ROWS, COLS))
session = Session(Job("relu", workload, backends.get("cpu").target()))
session._load = lambda candidate: Kernel()
candidate = Candidate({{}}, Launch(scratch_bytes=BYTES, alignment=16), Artifact("", "", "", ""))
for find in (lambda: session.screen(candidate, None), lambda: session.verify(candidate)):
    finding = find()
    print(finding.status, finding.message)
"""


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("scratch[:-1] = 7.0", "passed "),
        ("scratch[-1] = 7.0", "out_of_bounds wrote outside its scratch"),
        ("out.mul_(2.0 if scratch[0] == 7.0 else 1.0); scratch[0] = 7.0", "passed "),
        ("out.mul_(1.0 if scratch[0] == 7.0 else 2.0); scratch[0] = 7.0", "wrong "),
    ],
    ids=["sound", "past its end", "without what was left", "with what was left"],
)
def test_the_scratch_of_checked_calls_is_watched(fault: str, found: str) -> None:
    """A call finds nothing in it that the one before left, right or wrong."""
    command = [sys.executable, "-c", _SCRATCH.format(fault=fault)]
    output = subprocess.check_output(command, text=True, cwd=ROOT)
    assert [line.startswith(found) for line in output.splitlines()] == [True, True], output

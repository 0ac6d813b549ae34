"""A stand-in for compute-sanitizer runs the real program on the CPU; the real one needs a GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ksearch import backends, families, operators
from ksearch.backends.base import Backend
from ksearch.errors import KsearchError, ToolMissing, UsageError
from ksearch.evaluate import sanitize
from ksearch.evaluate.sanitize import TOOLS, Sanitizer
from ksearch.evaluate.sanitized import Task, values
from ksearch.launch import Launch
from ksearch.render import render
from ksearch.types import Artifact, Candidate, Target, digest
from tests.evaluate import kernels
from tests.export.exported import H200, kernel_of

COLS = 32
OP = operators.get("softmax")
WORKLOAD = OP.workload((64, COLS))
CPU = backends.get("cpu").target(0)

FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "Version 9.9.1 (build 1)"; exit 0; fi
tool=$2
shift 10
echo "========= COMPUTE-SANITIZER"
{}
"$@"
"""
FINDS = (
    'if [ $tool = racecheck ] && grep -q kernel "$5"; then echo "========= Error: Race reported"; exit 86; fi'
)


def fake(folder: Path, body: str = "") -> Path:
    path = folder / "compute-sanitizer"
    path.write_text(FAKE.format(body))
    path.chmod(0o755)
    return path


def build(body: str, folder: Path) -> Candidate:
    made = kernels.build(body, COLS, folder)
    return replace(made, launch=Launch(most_rows=64))


def test_the_program_runs_under_each_tool(tmp_path: Path) -> None:
    sanitizer = Sanitizer.at(fake(tmp_path), OP, WORKLOAD, CPU)
    mark = tmp_path / "ran"
    body = f'{kernels.CPU_SOFTMAX} std::system("echo $PPID >> {mark}");'
    said, error = sanitizer.check(build(body, tmp_path))
    assert (said.version, said.rows, error) == ("9.9.1", 64, "")
    assert said.found == dict.fromkeys(TOOLS, "no errors")
    ran = mark.read_text().split()
    assert (len(ran), len(set(ran))) == (8, 4), "twice in each of four processes"


def test_a_finding_is_told_by_its_tool(tmp_path: Path) -> None:
    said, error = Sanitizer.at(fake(tmp_path, FINDS), OP, WORKLOAD, CPU).check(
        build(kernels.CPU_SOFTMAX, tmp_path)
    )
    assert error == "racecheck: Race reported"
    assert said.found["racecheck"] == "error: Race reported"
    assert said.found["memcheck"] == "no errors"


def test_what_does_not_run_or_end_is_said_and_is_no_finding(tmp_path: Path) -> None:
    sanitizer = Sanitizer.at(fake(tmp_path), OP, WORKLOAD, CPU)
    said, error = sanitizer.check(build("std::abort();", tmp_path))
    assert error == ""
    assert all(text.startswith("did not run: ") for text in said.found.values())
    slow = replace(Sanitizer.at(fake(tmp_path), OP, WORKLOAD, CPU), limit_s=0.2)
    said, error = slow.check(build('while (true) { asm volatile(""); }', tmp_path))
    assert error == ""
    assert set(said.found.values()) == {"not finished within 0.2 s"}


def test_one_that_does_not_work_here_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(KsearchError, match=r"does not work on this machine \(did not run: No driver\)"):
        Sanitizer.at(fake(tmp_path, 'echo "No driver"; exit 1'), OP, WORKLOAD, CPU)
    with pytest.raises(KsearchError, match="cannot be started"):
        Sanitizer.at(tmp_path / "absent", OP, WORKLOAD, CPU)


def test_it_is_found_on_the_path_and_where_cuda_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    path = fake(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert next(sanitize._places()) == path
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert path in list(sanitize._places())


def test_without_it_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize, "_places", lambda: iter(()))
    with pytest.raises(ToolMissing, match="pip install nvidia-cuda-sanitizer-api"):
        Sanitizer.find(OP, WORKLOAD, H200)
    with pytest.raises(UsageError, match="does not know a CPU's"):
        Sanitizer.find(OP, WORKLOAD, CPU)


def task(name: str, shape: tuple[int, ...], dtype: str, launch: Launch, target: Target = H200) -> Task:
    op = operators.get(name)
    sanitizer = Sanitizer(Path("x"), "9", op, op.workload(shape, dtype), target)
    return sanitizer._task(Candidate({}, launch, Artifact("", "", "kernel.cubin", "d")))


def test_buffers_are_those_of_the_op_with_rows_cut_down() -> None:
    made = task("layernorm", (4, 2048, 1024), "bfloat16", Launch(most_rows=2**31 - 1))
    assert made.rows == 4096
    assert made.inputs == (4096 * 1024, 1024, 1024)
    assert made.outputs == (2 * 4096 * 1024,)
    assert task("layernorm", (4, 2048, 1024), "bfloat16", Launch()).rows == 8192, "as many as it is for"
    made = task("linear_relu", (16, 64, 32), "float16", Launch(most_rows=16))
    assert made.inputs == (16 * 64, 32 * 64, 32)
    made = task("linear_relu", (16, 64, 32), "float16", Launch(most_rows=16, torch_product=True))
    assert made.inputs == (16 * 32, 32), "PyTorch's product in the place of its operands"
    biased = Launch(most_rows=16, torch_product=True, torch_bias=2)
    assert task("linear_relu", (16, 64, 32), "float16", biased).inputs == (16 * 32,), "and of a bias"


def test_a_task_survives_its_file(tmp_path: Path) -> None:
    launch = kernel_of("linear_sigmoid_sum", (16, 512, 512), "float32", H200).launch
    made = Task("cuda", 1, "k.cubin", launch, "float32", (1, 2), (8,), (1,), 16, 512, 3)
    made.write(tmp_path / "task.json")
    assert Task.read(tmp_path / "task.json") == made


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_values_are_ordinary_numbers(dtype: str, width: int) -> None:
    made = values(1000, dtype, np.random.default_rng(0))
    assert (made.itemsize, made.size) == (width, 1000)
    if dtype == "bfloat16":
        made = (made.astype(np.uint32) << 16).view(np.float32)
    assert 0.5 < np.abs(made.astype(np.float64)).max() <= 1.0


# ---- on a GPU -----------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Sanitizer:
    target = backends.get("cuda").target(0)
    if not list(sanitize._places()):
        pytest.skip("compute-sanitizer is not installed here: pip install nvidia-cuda-sanitizer-api")
    return Sanitizer.find(OP, WORKLOAD, target)


def compiled(backend: Backend, text: str, arch: str, folder: Path, launch: Launch) -> Candidate:
    from ksearch.types import Source

    binary = backend.compile(Source(text, "cuda", arch)).binary
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    return Candidate({}, launch, Artifact("", "", str(path), digest(binary)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tool", "body"),
    [
        ("", "for (int c = threadIdx.x; c < 32; c += 64) y[c] = x[c];"),
        ("memcheck", "if (threadIdx.x == 0 && r == rows - 1) y[32] = x[0];"),
        ("initcheck", "y[threadIdx.x % 32] = y[(threadIdx.x + 1) % 32] + x[0];"),
        (
            "racecheck",
            "__shared__ float t[64]; t[threadIdx.x] = x[threadIdx.x % 8]; y[0] = t[63 - threadIdx.x];",
        ),
    ],
    ids=["right", "memcheck", "initcheck", "racecheck"],
)
def test_the_real_one_finds_what_is_wrong(real: Sanitizer, tmp_path: Path, tool: str, body: str) -> None:
    text = (
        'extern "C" __global__ void ksearch_kernel(const float* in0, float* out0, long long rows) {\n'
        "  long long r = blockIdx.x; const float* x = in0 + r * 32; float* y = out0 + r * 32;\n"
        f"  {body}\n}}\n"
    )
    launch = Launch(block=64, most_rows=64)
    candidate = compiled(backends.get("cuda"), text, real.target.arch, tmp_path, launch)
    said, error = real.check(candidate)
    assert error.partition(":")[0] == tool, said
    assert not any(text.startswith("did not run") for text in said.found.values()), said


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "shape"), [("softmax", (512, 4096)), ("gelu", (512, 4096))])
def test_kernels_of_our_templates_have_no_errors(
    real: Sanitizer, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    op, target = operators.get(name), real.target
    workload = op.workload(shape)
    family = families.find(op, "cuda")
    sanitizer = replace(real, op=op, workload=workload)
    for config in family.guesses(op.program(), workload, target)[:2]:
        launch = family.launch(config, op.program(), workload, target)
        text = render(op, workload, config, target).text
        said, error = sanitizer.check(compiled(backends.get("cuda"), text, target.arch, tmp_path, launch))
        assert error == "", (config, said)

"""The check, tried with kernels written in PyTorch: quick, and every role and shape can be tried."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import ksearch
from ksearch import backends, operators
from ksearch.errors import BadShape
from ksearch.evaluate import check
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.check import Run, Subset, check_whole
from ksearch.evaluate.messages import Finding, Job
from ksearch.evaluate.problem import Problem
from ksearch.types import Status

OPS = """
import ksearch
import torch

@ksearch.op
def scaled(x, weight):
    return x.sigmoid() * weight

@ksearch.op(scale="column")
def normed(x, weight, scale, *, eps=1e-6):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight * scale

@ksearch.op
def added(x, y):
    return x + y
"""


@pytest.fixture
def ops(tmp_path: Path) -> Path:
    path = tmp_path / "check_ops.py"
    path.write_text(OPS)
    return path


def problem(op: str, shape: tuple[int, ...], dtype: str = "float32", **limits: int) -> Problem:
    found = operators.resolve(op)
    return Problem(
        Job(found.location, found.workload(shape, dtype), backends.get("cpu").target(), 0, **limits)
    )


def kernel(
    function: Callable[..., torch.Tensor], flaw: Callable[[torch.Tensor], object] | None = None
) -> Run:
    """A candidate that computes `function`, and then does one thing to the result."""

    def run(tensors: Sequence[Guarded], output: Guarded) -> None:
        output.values.copy_(function(*(tensor.values for tensor in tensors)))
        if flaw is not None:
            flaw(output.values)

    return run


def find(subject: Problem, run: Run) -> list[Finding]:
    return [Subset(subject, seed=1).check(run, misaligned=True), check_whole(subject, run)]


CASES = [
    ("softmax", (40, 100)),
    ("softmax", (1, 300)),
    ("softmax", (2, 3, 4)),
    ("softmax", (5, 1)),
    ("sigmoid", (1, 50_000)),
    ("sigmoid", (50_000,)),
    ("sigmoid", (7, 13)),
    ("scaled", (9, 65)),
    ("normed", (40, 100)),
    ("normed", (3, 4)),
    ("added", (40, 100)),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("op", "shape"), CASES, ids=str)
def test_pytorch_itself_is_right_on_every_shape(
    op: str, shape: tuple[int, ...], dtype: str, ops: Path
) -> None:
    subject = problem(op if op in ("softmax", "sigmoid") else f"{ops}:{op}", shape, dtype)
    for finding in find(subject, kernel(subject.function)):
        assert finding.status is Status.PASSED, finding
        assert finding.error is not None
        assert finding.error < 1


@pytest.mark.parametrize(("op", "shape"), CASES, ids=str)
def test_one_percent_off_is_wrong_on_every_shape(op: str, shape: tuple[int, ...], ops: Path) -> None:
    subject = problem(op if op in ("softmax", "sigmoid") else f"{ops}:{op}", shape)
    for finding in find(subject, kernel(subject.function, lambda result: result.mul_(1.01))):
        assert finding.status is Status.WRONG, finding


def test_rows_stay_whole_where_they_may_mean_something(tmp_path: Path) -> None:
    """What an op with its own template computes is not known: in pieces, its reference would be another."""
    (tmp_path / "own.cpp.j2").write_text("")
    path = tmp_path / "own.py"
    path.write_text(
        textwrap.dedent("""
            import ksearch

            @ksearch.op
            class Own(ksearch.TemplateOp):
                name = "own"
                templates = {"cpu": "own.cpp.j2"}
                def reference(self, x): return x - x.mean(-1, keepdim=True)
                def space(self, workload, target): return {"threads": [1]}
                def launch(self, config, workload, target): return ksearch.Launch()
        """)
    )
    subject = problem(f"{path}:own", (3, 10_000))
    assert not subject.pointwise
    assert {part.width for part in subject.parts()} == {10_000}
    for finding in find(subject, kernel(lambda x: x - x.sum(-1, keepdim=True) / x.shape[-1])):
        assert finding.status is Status.PASSED, finding
    for finding in find(subject, kernel(lambda x: x)):
        assert finding.status is Status.WRONG, finding


def test_weights_and_scales_are_really_used(ops: Path) -> None:
    subject = problem(f"{ops}:normed", (40, 100))
    for wrong in (
        lambda x, weight, scale: subject.function(x, weight, torch.ones_like(scale)),
        lambda x, weight, scale: subject.function(x, torch.ones_like(weight), scale),
        lambda x, weight, scale: subject.function(x, weight, scale.roll(1, 0)),
    ):
        assert [finding.status for finding in find(subject, kernel(wrong))] == [Status.WRONG] * 2


@pytest.mark.parametrize("position", [0, 1, -1])
def test_any_input_that_is_changed_is_noticed(position: int, ops: Path) -> None:
    subject = problem(f"{ops}:normed", (40, 100))

    def run(tensors: Sequence[Guarded], output: Guarded) -> None:
        kernel(subject.function)(tensors, output)
        tensors[position].values[0, 0] += 1

    finding = Subset(subject, seed=1).check(run, misaligned=False)
    assert (finding.status, finding.message) == (Status.OUT_OF_BOUNDS, "input modified")
    assert not finding.healthy
    finding = check_whole(subject, run)
    assert (finding.status, finding.message) == (Status.OUT_OF_BOUNDS, "input modified")


def test_the_whole_is_checked_to_its_last_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksearch.evaluate.problem._PART_BYTES", {"cpu": 400 * 7})
    subject = problem("softmax", (39, 100))
    assert [part.lines for part in subject.parts()] == [7, 7, 7, 7, 7, 4]
    for row, column in [(0, 0), (6, 99), (38, 0), (38, 99)]:  # rows of numbers, not of NaN

        def flaw(result: torch.Tensor, row: int = row, column: int = column) -> None:
            result[row, column] += result[row].max() * 1e-3

        finding = check_whole(subject, kernel(subject.function, flaw))
        assert finding.status is Status.WRONG, (row, column, finding)


def test_the_final_check_uses_other_values_than_the_screening() -> None:
    subject = problem("softmax", (40, 100))
    seen: list[torch.Tensor] = []

    def run(tensors: Sequence[Guarded], output: Guarded) -> None:
        seen.append(tensors[0].values.clone())
        kernel(subject.function)(tensors, output)

    find(subject, run)
    assert not torch.equal(seen[0][0], seen[-1][0])


def test_misaligned_bases_are_tried_when_asked() -> None:
    subject = problem("sigmoid", (40, 100))
    subset = Subset(subject, seed=1)
    remainders: set[int] = set()

    def run(tensors: Sequence[Guarded], output: Guarded) -> None:
        remainders.update((tensors[0].pointer % 16, output.pointer % 16))
        kernel(subject.function)(tensors, output)

    assert subset.check(run, misaligned=False).status is Status.PASSED
    assert remainders == {0}
    assert subset.check(run, misaligned=True).status is Status.PASSED
    assert remainders == {0, 4}


def test_every_kind_of_row_is_seen_even_by_a_workload_of_one_row() -> None:
    subject = problem("softmax", (1, 50))
    kinds: list[torch.Tensor] = []

    def run(tensors: Sequence[Guarded], output: Guarded) -> None:
        kinds.append(tensors[0].values[0].clone())
        kernel(subject.function)(tensors, output)

    Subset(subject, seed=1).check(run, misaligned=False)
    assert any((row == -torch.inf).all() for row in kinds)
    assert any(row.isnan().any() for row in kinds)
    assert any((row > 1000).sum() == 1 and (row < 1000).sum() == 49 for row in kinds)


def test_subsets_are_bounded_and_odd() -> None:
    rows = Subset(problem("softmax", (5000, 1000)), seed=1).rows
    assert rows * 4000 <= check._SUBSET_BYTES["cpu"] < (rows + 2) * 4000
    assert rows % 2 == 1
    assert Subset(problem("softmax", (5, 1_000_000)), seed=1).rows == 3


def test_too_large_for_the_memory_is_refused_before_allocating() -> None:
    with pytest.raises(BadShape, match=r"needs at least 1\.2 GB .* 1\.0 GB may be used"):
        problem("softmax", (10_000, 10_000), memory_limit_bytes=10**9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_whole_check_needs_bounded_memory() -> None:
    """96 MB in float32: input, output and its copy are 288 MB; in one block the check takes 1600 MB."""
    script = textwrap.dedent("""
        import torch
        from ksearch import backends, operators
        from ksearch.evaluate.check import check_whole
        from ksearch.evaluate.messages import Job
        from ksearch.evaluate.problem import Problem
        torch.softmax(torch.randn(100, 100), -1)
        torch.set_grad_enabled(False)
        def peak_kb():  # not ru_maxrss, which a process inherits from the one that started it
            return int(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1])
        before = peak_kb()
        op = operators.resolve("softmax")
        problem = Problem(Job("softmax", op.workload((6000, 4000)), backends.get("cpu").target()))
        def run(tensors, output):
            torch.softmax(tensors[0].values, -1, out=output.values)
        print(check_whole(problem, run).status)
        print((peak_kb() - before) // 1024)
    """)
    root = str(Path(ksearch.__file__).parents[1])
    output = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=root)
    status, peak_mib = output.split()
    assert status == "passed"
    assert 250 < int(peak_mib) < 700

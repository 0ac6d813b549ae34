"""The check, tried with kernels written in PyTorch: quick, and every role and shape can be tried."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ksearch
from ksearch import backends, operators
from ksearch.errors import BadShape
from ksearch.evaluate import check
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.ceilings import ceilings
from ksearch.evaluate.check import Run, Subset
from ksearch.evaluate.messages import Finding, Job
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.whole import check_whole
from ksearch.operators.program import as_tuple
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

@ksearch.op
def pair(x, y):
    return x.sigmoid(), x + y

@ksearch.op
def sum_and_norm(x, residual, weight, *, eps=1e-6):
    total = x + residual
    return total * torch.rsqrt((total * total).mean(-1, keepdim=True) + eps) * weight, total
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


def kernel(function: Callable[..., Any], flaw: Callable[..., object] | None = None) -> Run:
    """A candidate that computes `function`, and then does one thing to the results."""

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        results = as_tuple(function(*(tensor.values for tensor in tensors)))
        for output, result in zip(outputs, results, strict=True):
            output.values.copy_(result)
        if flaw is not None:
            flaw(*(output.values for output in outputs))

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
    ("pair", (7, 13)),
    ("pair", (50_000,)),
    ("sum_and_norm", (40, 100)),
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
    for position in range(len(subject.outputs)):

        def flaw(*results: torch.Tensor, position: int = position) -> None:
            results[position].mul_(1.01)

        for finding in find(subject, kernel(subject.function, flaw)):
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


def _second_unwritten(subject: Problem) -> Run:
    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        outputs[0].values.copy_(subject.function(*(tensor.values for tensor in tensors))[0])

    return run


def _swapped(subject: Problem) -> Run:
    return kernel(lambda *tensors: subject.function(*tensors)[::-1])


def _both_the_first(subject: Problem) -> Run:
    return kernel(lambda *tensors: subject.function(*tensors)[:1] * 2)


def _second_random(subject: Problem) -> Run:
    calls = iter(range(1000))
    return kernel(subject.function, lambda first, second: second[-1, -1].fill_(float(next(calls))))


def _second_too_long(subject: Problem) -> Run:
    right = kernel(subject.function)

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        right(tensors, outputs)
        outputs[1].raw[outputs[1].raw.numel() - 1] = 0

    return run


def _second_last_element(subject: Problem) -> Run:
    return kernel(subject.function, lambda first, second: second[-1].mul_(1.01))


WRONG_OUTPUTS = {
    "unwritten": (_second_unwritten, Status.WRONG, "output 1: left elements of the result unwritten"),
    "swapped": (_swapped, Status.WRONG, "output [01]: (error is|NaN or)"),
    "both the first": (_both_the_first, Status.WRONG, "output 1: (error is|NaN or)"),
    "random": (_second_random, Status.NONDETERMINISTIC, "output 1: two runs"),
    "too long": (_second_too_long, Status.OUT_OF_BOUNDS, "output 1: wrote outside its output"),
    "last row": (_second_last_element, Status.WRONG, "output 1: error is"),
}


@pytest.mark.parametrize("name", WRONG_OUTPUTS)
@pytest.mark.parametrize("op", ["pair", "sum_and_norm"])
def test_what_is_wrong_with_one_of_two_outputs_is_found_and_said(op: str, name: str, ops: Path) -> None:
    subject = problem(f"{ops}:{op}", (39, 100))
    make, status, message = WRONG_OUTPUTS[name]
    for finding in find(subject, make(subject)):
        assert finding.status is status, finding
        assert re.match(message, finding.message), finding
        assert finding.healthy is (status is not Status.OUT_OF_BOUNDS)


def test_the_ceiling_moves_every_input_and_output(ops: Path) -> None:
    subject = problem(f"{ops}:sum_and_norm", (40, 100))
    ((copy, scale),) = ceilings(subject)
    moved = copy()
    assert isinstance(moved, torch.Tensor)
    assert 2 * moved.numel() * scale == 4 * 4000 + 100


def test_each_output_is_off_alignment_by_itself(ops: Path) -> None:
    subject = problem(f"{ops}:pair", (40, 100))
    seen: set[tuple[int, ...]] = set()

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        seen.add(tuple(output.pointer % 16 for output in outputs))
        kernel(subject.function)(tensors, outputs)

    assert Subset(subject, seed=1).check(run, misaligned=True).status is Status.PASSED
    assert seen == {(0, 0), (4, 8)}


@pytest.mark.parametrize("position", [0, 1, -1])
def test_any_input_that_is_changed_is_noticed(position: int, ops: Path) -> None:
    subject = problem(f"{ops}:normed", (40, 100))

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        kernel(subject.function)(tensors, outputs)
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

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        seen.append(tensors[0].values.clone())
        kernel(subject.function)(tensors, outputs)

    find(subject, run)
    assert not torch.equal(seen[0][0], seen[-1][0])


def test_misaligned_bases_are_tried_when_asked() -> None:
    subject = problem("sigmoid", (40, 100))
    subset = Subset(subject, seed=1)
    remainders: set[int] = set()

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        remainders.update((tensors[0].pointer % 16, outputs[0].pointer % 16))
        kernel(subject.function)(tensors, outputs)

    assert subset.check(run, misaligned=False).status is Status.PASSED
    assert remainders == {0}
    assert subset.check(run, misaligned=True).status is Status.PASSED
    assert remainders == {0, 4}


@pytest.mark.parametrize(
    ("slow_calls", "best_us", "calls", "status"),
    [
        (math.inf, None, 3, Status.PASSED),
        (math.inf, 50_000.0, 3, Status.PASSED),  # not ten times slower
        (math.inf, 100.0, 2, Status.TIMEOUT),
        (1, 100.0, 4, Status.PASSED),  # late by itself
    ],
)
def test_a_hopelessly_slow_one_is_not_checked_further(
    slow_calls: float, best_us: float | None, calls: int, status: Status
) -> None:
    subject = problem("softmax", (40, 100))
    subset = Subset(subject, seed=1)
    made = 0

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        nonlocal made
        made += 1
        if made <= slow_calls:
            time.sleep(0.05)
        kernel(subject.function)(tensors, outputs)

    finding = subset.check(run, misaligned=False, best_us=best_us)
    assert (finding.status, made) == (status, calls), finding
    assert finding.healthy
    if status is Status.TIMEOUT:
        assert "times the best so far: not checked further" in finding.message


@pytest.mark.parametrize("place", ["output", "input"])
def test_damage_done_by_a_hopelessly_slow_one_is_seen(place: str) -> None:
    subject = problem("softmax", (40, 100))

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        time.sleep(0.2)
        (outputs if place == "output" else tensors)[0].raw[-1 if place == "output" else 5000] += 1

    finding = Subset(subject, seed=1).check(run, misaligned=False, best_us=100.0)
    message = {"output": "wrote outside its output", "input": "input modified"}[place]
    assert (finding.status, finding.message, finding.healthy) == (Status.OUT_OF_BOUNDS, message, False)


def test_every_kind_of_row_is_seen_even_by_a_workload_of_one_row() -> None:
    subject = problem("softmax", (1, 50))
    kinds: list[torch.Tensor] = []

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        kinds.append(tensors[0].values[0].clone())
        kernel(subject.function)(tensors, outputs)

    Subset(subject, seed=1).check(run, misaligned=False)
    assert any((row == -torch.inf).all() for row in kinds)
    assert any(row.isnan().any() for row in kinds)
    assert any((row > 1000).sum() == 1 and (row < 1000).sum() == 49 for row in kinds)


def test_subsets_are_bounded_and_odd() -> None:
    rows = Subset(problem("softmax", (5000, 1000)), seed=1).rows
    assert rows * 4000 <= check._SUBSET_BYTES["cpu"] < (rows + 2) * 4000
    assert rows % 2 == 1
    assert Subset(problem("softmax", (5, 1_000_000)), seed=1).rows == 3


def test_every_output_counts_in_memory(ops: Path) -> None:
    """Two inputs, two outputs and PyTorch's own two results: six times 80 MB."""
    with pytest.raises(BadShape, match=r"needs at least 0\.5 GB"):
        problem(f"{ops}:pair", (1000, 20_000), memory_limit_bytes=479 * 10**6)


def test_too_large_for_the_memory_is_refused_before_allocating() -> None:
    with pytest.raises(BadShape, match=r"needs at least 1\.2 GB .* 1\.0 GB may be used"):
        problem("softmax", (10_000, 10_000), memory_limit_bytes=10**9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_whole_check_needs_bounded_memory() -> None:
    """96 MB in float32: input, output and its copy are 288 MB; in one block the check takes 1600 MB."""
    script = textwrap.dedent("""
        import torch
        from ksearch import backends, operators
        from ksearch.evaluate.whole import check_whole
        from ksearch.evaluate.messages import Job
        from ksearch.evaluate.problem import Problem
        torch.softmax(torch.randn(100, 100), -1)
        torch.set_grad_enabled(False)
        def peak_kb():  # not ru_maxrss, which a process inherits from the one that started it
            return int(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1])
        before = peak_kb()
        op = operators.resolve("softmax")
        problem = Problem(Job("softmax", op.workload((6000, 4000)), backends.get("cpu").target()))
        def run(tensors, outputs):
            torch.softmax(tensors[0].values, -1, out=outputs[0].values)
        print(check_whole(problem, run).status)
        print((peak_kb() - before) // 1024)
    """)
    root = str(Path(ksearch.__file__).parents[1])
    output = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=root)
    status, peak_mib = output.split()
    assert status == "passed"
    assert 250 < int(peak_mib) < 1000  # 438 to 708, as malloc pleases


# ---- what is kept from call to call, and what planted faults leave behind -------------------------------


def test_a_kernel_that_answers_by_address_is_found() -> None:
    """It is right on the first values of a buffer, and gives the same bits every time."""
    subject = problem("softmax", (40, 100))
    known: dict[int, torch.Tensor] = {}

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        (x,) = tensors
        result = known.setdefault(x.pointer, torch.softmax(x.values, -1))
        outputs[0].values.copy_(result)

    assert Subset(subject, seed=1).check(run, misaligned=False).status is Status.WRONG


def test_an_input_that_is_changed_and_changed_back_is_noticed(ops: Path) -> None:
    subject = problem(f"{ops}:normed", (40, 100))
    for position in (0, 1):

        def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded], position: int = position) -> None:
            kernel(subject.function)(tensors, outputs)
            tensors[position].bits[3] ^= 1

        finding = Subset(subject, seed=1).check(run, misaligned=False)
        assert (finding.status, finding.message) == (Status.OUT_OF_BOUNDS, "input modified")


def test_what_a_planted_kernel_did_beside_its_outputs_is_mended() -> None:
    subject = problem("softmax", (40, 100))
    subset = Subset(subject, seed=1)
    right = kernel(subject.function)

    def wrong(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        right(tensors, outputs)
        tensors[0].raw[0] = 1
        tensors[0].bits[5] = 1
        outputs[0].raw[-1] = 1

    assert subset.check(wrong, misaligned=True).status is Status.OUT_OF_BOUNDS
    assert subset.check(right, misaligned=True).status is Status.OUT_OF_BOUNDS, "and else it stays so"
    assert subset.mend()
    assert subset.check(right, misaligned=True).status is Status.PASSED


def test_a_weight_has_no_copy_to_be_mended_from() -> None:
    subject = problem("linear", (40, 64, 48))
    subset = Subset(subject, seed=1)
    right = kernel(subject.function)

    def wrong(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        right(tensors, outputs)
        tensors[1].bits[5] += 1

    assert subset.check(wrong, misaligned=False).status is Status.OUT_OF_BOUNDS
    assert not subset.mend()


def test_fewer_rows_for_planted_kernels_have_every_kind_twice() -> None:
    subject = problem("softmax", (500, 3000))
    few = check.few_rows(subject, 1, Subset(subject, seed=1))
    assert few.rows == 2 * 19 + 1
    all_rows = Subset(problem("softmax", (500, 100)), seed=1)
    assert check.few_rows(problem("softmax", (500, 100)), 1, all_rows) is all_rows

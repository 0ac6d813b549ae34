"""Linears in the check and the worker: what a sum hides is found, and the weight stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ksearch import backends, operators
from ksearch.errors import BadShape
from ksearch.evaluate import inputs, problem, weights
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.ceilings import ceilings
from ksearch.evaluate.check import Run, Subset
from ksearch.evaluate.messages import Finding, Job, Ready
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.whole import check_whole
from ksearch.evaluate.worker import Worker
from ksearch.launch import Launch
from ksearch.operators.program import Input, Role, as_tuple
from ksearch.types import Status
from tests.evaluate import kernels

PER_ROW, FULL = "linear_sigmoid_sum", "linear_sigmoid_scale_residual"
SHAPES = [(40, 65, 33), (1, 1, 1), (3, 300, 7), (2, 3, 33, 65)]


def job(op: str, shape: tuple[int, ...], dtype: str = "float32", **options: Any) -> Job:
    found = operators.resolve(op)
    return Job(found.location, found.workload(shape, dtype), backends.get("cpu").target(), **options)


def subject(op: str, shape: tuple[int, ...] = (40, 65, 33), dtype: str = "float32") -> Problem:
    return Problem(job(op, shape, dtype))


def kernel(function: Callable[..., Any], flaw: Callable[..., object] | None = None) -> Run:
    """A candidate that computes `function`, and then does one thing to its result."""

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        results = as_tuple(function(*(tensor.values for tensor in tensors)))
        for output, result in zip(outputs, results, strict=True):
            output.values.copy_(result.reshape(output.values.shape))
        if flaw is not None:
            flaw(*(output.values for output in outputs))

    return run


def find(made: Problem, run: Run, *, misaligned: bool = True) -> list[Finding]:
    return [Subset(made, seed=1).check(run, misaligned=misaligned), check_whole(made, run)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["linear", "linear_gelu", "linear_logsumexp", FULL, PER_ROW])
def test_pytorch_itself_is_right_on_every_shape(op: str, shape: tuple[int, ...], dtype: str) -> None:
    made = subject(op, shape, dtype)
    for finding in find(made, kernel(made.function)):
        assert finding.status is Status.PASSED, finding
        assert finding.error is not None
        assert finding.error < 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_product_that_is_rounded_before_the_bias_is_right(dtype: str) -> None:
    """What the library strategy does, while PyTorch adds the bias first."""
    made = subject("linear", (40, 64, 100), dtype)

    def rounded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (x @ weight.t()).float() + bias.float()

    for finding in find(made, kernel(rounded)):
        assert finding.status is Status.PASSED, finding


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", [FULL, PER_ROW])
def test_one_percent_off_is_wrong_on_every_shape(op: str, shape: tuple[int, ...]) -> None:
    made = subject(op, shape)
    for finding in find(made, kernel(made.function, lambda result: result.mul_(1.01))):
        assert finding.status is Status.WRONG, finding


def _in_tf32(tensor: torch.Tensor) -> torch.Tensor:
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_a_sum_of_many_columns_does_not_hide_low_precision() -> None:
    """Over columns that differ, products in TF32 are off this way and that: only equal ones tell."""

    def low(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(functional.linear(_in_tf32(x), _in_tf32(weight), bias)).sum(-1)

    made = subject(PER_ROW, (39, 64, 4096))
    finding = Subset(made, seed=1).check(kernel(low), misaligned=False)
    assert finding.status is Status.WRONG, finding
    assert finding.error is not None
    assert finding.error > 5


def test_of_equal_columns_pytorchs_own_error_is_not_taken_for_more_than_luck() -> None:
    """It is that of one product a row: a sum of its eighths, which is no worse, was refused in one of 40."""

    def in_eighths(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        pairs = zip(x.split(32, 1), weight.split(32, 1), strict=True)
        return torch.sigmoid(sum(one @ other.t() for one, other in pairs) + bias).sum(-1)

    made = subject(PER_ROW, (64, 256, 64))
    for seed in range(40):
        finding = Subset(made, seed=seed).check(kernel(in_eighths), misaligned=False)
        assert finding.status is Status.PASSED, (seed, finding)


@pytest.mark.parametrize("op", [FULL, PER_ROW])
def test_a_special_weight_at_any_end_is_not_lost(op: str) -> None:
    """NaN, inf and a huge element: of an ordinary column a long sum in float16 would not show the loss."""
    made = subject(op, (39, 64, 2001), "float16")

    def deaf(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept = torch.where(weight.abs() < 30, weight, 0.0)
        return made.function(x, kept, bias)

    assert Subset(made, seed=1).check(kernel(deaf), misaligned=False).status is Status.WRONG
    ordinary = made.weight
    assert ordinary is not None
    made.fill_for_checking()
    assert ordinary.values.abs().max() < 30


def test_the_weight_is_held_once_and_is_as_it_was_after_every_case() -> None:
    made = subject(FULL)
    subset = Subset(made, seed=1)
    seen: dict[int, list[torch.Tensor]] = {}

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        seen.setdefault(tensors[1].pointer, []).append(tensors[1].bits.clone())
        kernel(made.function)(tensors, outputs)

    assert subset.check(run, misaligned=False).status is Status.PASSED
    (held,) = seen.values()
    odd = [bits for bits in held if not torch.equal(bits, held[0])]
    assert len(odd) == 2, "two runs of one case"
    changed = odd[0].view(torch.float32)[odd[0] != held[0]]
    assert len(changed) == 3
    assert changed.isnan().sum() == changed.isinf().sum() == 1
    before, first = list(held), held[0]
    held.clear()
    assert subset.check(run, misaligned=False).status is Status.PASSED
    assert len(held) == len(before)
    assert torch.equal(held[0], first)


def test_misaligned_weights_are_tried_too() -> None:
    made = subject(PER_ROW)
    remainders: set[tuple[int, ...]] = set()

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        remainders.add(tuple(tensor.pointer % 16 for tensor in (*tensors, *outputs)))
        kernel(made.function)(tensors, outputs)

    subset = Subset(made, seed=1)
    assert subset.check(run, misaligned=False).status is Status.PASSED
    assert remainders == {(0, 0, 0, 0)}
    assert subset.check(run, misaligned=True).status is Status.PASSED
    assert remainders == {(0, 0, 0, 0), (4, 4, 4, 4)}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("op", [FULL, PER_ROW])
def test_any_input_that_is_changed_is_noticed(op: str, place: int) -> None:
    made = subject(op)

    def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        kernel(made.function)(tensors, outputs)
        tensors[place].values[0, 0] += 1

    for finding in find(made, run, misaligned=False):
        assert (finding.status, finding.message) == (Status.OUT_OF_BOUNDS, "input modified")


def test_the_whole_is_checked_in_parts_to_its_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "_LINEAR_PART_ELEMENTS", {"cpu": 65 * 7})
    for op in (FULL, PER_ROW):
        made = subject(op, (39, 65, 33))
        assert [part.lines for part in made.parts()] == [7, 7, 7, 7, 7, 4]
        assert check_whole(made, kernel(made.function)).status is Status.PASSED
        for row in (0, 6, 38):
            finding = check_whole(made, kernel(made.function, lambda out, row=row: out[row].mul_(1.001)))
            assert finding.status is Status.WRONG, (row, finding)


def test_the_ceiling_is_a_copy_or_pytorchs_product() -> None:
    made = subject(PER_ROW, (40, 64, 100))
    (copy, scale), (product, times) = ceilings(made)
    moved, result = copy(), product()
    assert isinstance(moved, torch.Tensor)
    assert 2 * moved.numel() * scale == pytest.approx(40 * 64 + 100 * 64 + 100 + 40)
    assert isinstance(result, torch.Tensor)
    assert (result.shape, result.dtype, times) == ((40, 100), torch.float32, 1.0)


def test_a_weight_that_does_not_fit_is_refused_before_allocating() -> None:
    """100 MB of weight: itself, twice more for screening, once for the ceiling, and in float64."""
    with pytest.raises(BadShape, match=r"needs at least 0\.6 GB"):
        Problem(job(PER_ROW, (4, 5000, 5000), memory_limit_bytes=500 * 10**6))


# Values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("cols", "inner"), [(33, 1), (100, 64), (32, 8192)])
def test_no_sum_overflows_in_any_order(dtype: torch.dtype, cols: int, inner: int) -> None:
    """As long as no element of either side is infinite."""
    weight = torch.empty(cols, inner, dtype=dtype)
    weights.fill_mixed(weight, torch.Generator().manual_seed(1))
    most = inputs.largest(dtype, cols, pointwise=False, inner=inner)
    parts = inputs.split(38, cols, flat=False, max_elements=38 * cols)
    x = torch.empty(38, inner, dtype=dtype)
    inputs.fill(x, Input("x", Role.LEFT), parts, 1, most=most)
    size = x.double().abs().nan_to_num(0.0, 0.0, 0.0) @ weight.double().abs().t()
    assert size.max() <= weights.largest_product(dtype, cols) * 1.01
    assert size.max() > 1
    for odd in weights.patches((cols, inner), dtype, most, apart=False):
        for each in odd:
            if each.value < torch.inf:
                added = x[:, each.column].double().abs().nan_to_num(0.0, 0.0, 0.0).max() * each.value
                assert added <= weights.largest_product(dtype, cols) * 1.01


def test_weights_are_of_several_scales_or_all_alike() -> None:
    weight = torch.empty(400, 256)
    weights.fill_mixed(weight, torch.Generator().manual_seed(1))
    scales = [float(weight[kind::4].std() / weights.bound(256)) for kind in range(4)]
    assert scales == pytest.approx([0.577, 1.0, 9.24, 1 / 64], rel=0.05)
    weights.fill_alike(weight, torch.Generator().manual_seed(1))
    assert (weight == weight[0]).all()
    assert len(weight[0].unique()) > 200


def test_what_is_timed_is_a_layer_as_it_is_initialised() -> None:
    made = subject(FULL, (40, 64, 100))
    made.fill_for_timing()
    x, weight = (tensor.values for tensor in made.inputs[:2])
    assert 0 <= x.min() < x.max() <= 1
    assert 0.12 < weight.abs().max() <= 1 / 8
    assert made.outputs[0].values.shape == (40, 100)


# The worker


ROWS, INNER, COLS = 41, 300, 100


@pytest.fixture(scope="module", params=[FULL, PER_ROW])
def started(request: pytest.FixtureRequest) -> Iterator[tuple[str, Worker, Ready]]:
    with Worker(job(request.param, (ROWS, INNER, COLS)), timeout_s=10.0) as worker:
        yield request.param, worker, worker.start()


def make(body: str, folder: Path) -> Any:
    return kernels.build(body, COLS, folder, prologue=kernels.CPU_LINEAR_PROLOGUE)


def test_a_right_kernel_passes_and_races(started: tuple[str, Worker, Ready], folder: Path) -> None:
    op, worker, ready = started
    candidate = make(kernels.CPU_LINEAR[op], folder)
    outcome = worker.screen(candidate)
    assert outcome.status is Status.PASSED, outcome
    assert ready.baseline_us > 1
    (entry,) = worker.finals([candidate], budget_s=0.2).entries
    assert entry.outcome.status is Status.PASSED, entry.outcome
    assert set(entry.errors) == {"uniform", "normal", "spike", "special"}


@pytest.mark.parametrize("name", kernels.CPU_LINEAR_WRONG)
def test_every_planted_error_gets_its_status(
    name: str, started: tuple[str, Worker, Ready], folder: Path
) -> None:
    op, worker, _ = started
    old, new, status, message = kernels.CPU_LINEAR_WRONG[name]
    right = kernels.CPU_LINEAR[op]
    assert old in right
    outcome = worker.screen(make(right.replace(old, new), folder))
    assert outcome.status is status, outcome
    assert re.search(message, outcome.message), outcome.message


def test_the_product_may_be_pytorchs(folder: Path) -> None:
    """The kernel gets it in place of the two operands, and its time is part of what is measured."""
    body = "for (int64_t i = 0; i < rows * COLS; i++) out0[i] = in0[i] + in1[i % COLS];"
    prologue = (
        "#include <cstdint>\nconstexpr int64_t COLS = {cols};\n"
        'extern "C" void ksearch_kernel('
        "const float* in0, const float* in1, float* out0, int64_t rows, int32_t) {{"
    )
    with Worker(job("linear", (ROWS, INNER, COLS))) as worker:
        worker.start()
        for flaw, status in (("", Status.PASSED), ("out0[3] += 1;", Status.WRONG)):
            made = kernels.build(body + flaw, COLS, folder, Launch(torch_product=True), prologue=prologue)
            assert worker.screen(made).status is status


def test_the_bias_may_be_pytorchs_too(folder: Path) -> None:
    """Of bfloat16 it is added before the product is rounded; the kernel gets their sum alone."""
    prologue = (
        "#include <cstdint>\nconstexpr int64_t COLS = {cols};\n"
        'extern "C" void ksearch_kernel(const uint16_t* in0, uint16_t* out0, int64_t rows, int32_t) {{'
    )
    body = "for (int64_t i = 0; i < rows * COLS; i++) out0[i] = in0[i];"
    launch = Launch(torch_product=True, torch_bias=2)
    with Worker(job("linear", (ROWS, INNER, COLS), "bfloat16")) as worker:
        worker.start()
        for flaw, status in (("", Status.PASSED), ("out0[3] ^= 0x4000;", Status.WRONG)):
            made = kernels.build(body + flaw, COLS, folder, launch, prologue=prologue)
            assert worker.screen(made).status is status

"""Integer tensors in a check: what indices hold, what is right for a place; and results of one value."""

from __future__ import annotations

import math

import pytest
import torch

from ksearch import operators
from ksearch.evaluate import inputs
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.ceilings import ceilings
from ksearch.evaluate.check import Subset
from ksearch.evaluate.messages import Job
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.tolerance import Places, read
from ksearch.evaluate.whole import check_whole
from ksearch.operators.program import Input, Role
from ksearch.types import Option, Status, Target

CPU = torch.device("cpu")
TARGET = Target("cpu", "x86_64-avx2", "test", units=2)


def problem(name: str, shape: tuple[int, ...], dtype: str = "float32", **options: Option) -> Problem:
    return Problem(Job(name, operators.get(name).workload(shape, dtype, **options), TARGET))


def test_indices_are_of_columns_and_some_mean_none() -> None:
    tensor = torch.empty(1000, 1, dtype=torch.int64)
    declared, places = Input("target", Role.INDEX), inputs.Places(50, (-100,))
    inputs.fill(tensor, declared, (), 1, most=1.0, places=places)
    held = set(tensor.flatten().tolist())
    assert held == {*range(50), -100}
    inputs.fill_ordinary(tensor, declared, 1, places)
    assert set(tensor.flatten().tolist()) == {*range(50)}


def test_products_of_tamed_lines_stay_in_range() -> None:
    lines = torch.empty(17, 5000)
    part = inputs.split(17, 5000, flat=False, max_elements=lines.numel())[0]
    inputs.fill_part(lines, Input("x"), part, 1, most=1e30)
    before = lines.clone()
    inputs.tame(lines, 5000)
    assert torch.equal(lines.isfinite(), before.isfinite())
    assert torch.equal(lines == 0, before == 0)
    assert torch.equal(lines.signbit(), before.signbit())
    ordinary = lines[lines.isfinite().all(1) & (lines != 0).all(1)].double()
    assert len(ordinary) >= 8
    assert (ordinary.abs().log2().cumsum(1).abs() <= 61).all()


def test_a_place_is_right_or_it_is_not() -> None:
    base, exact = torch.tensor([[3], [7], [9]]), torch.tensor([[3], [8], [9]])
    judged = Places(base, exact, first_kind=0)
    assert read([judged.judge(torch.tensor([[3], [7], [9]])).tolist()]).error == 0.0
    assert read([judged.judge(torch.tensor([[3], [8], [9]])).tolist()]).error == 0.0
    assert math.isinf(read([judged.judge(torch.tensor([[3], [6], [9]])).tolist()]).error)


@pytest.mark.parametrize("shift", [0, 1])
def test_integers_are_guarded_and_poisoned(shift: int) -> None:
    tensor = Guarded((3, 1), torch.int64, CPU, shift)
    tensor.poison(0)
    first = tensor.values.clone()
    tensor.poison(1)
    assert not bool((first == tensor.values).any())
    assert not bool(tensor.damaged())
    tensor.raw[tensor.raw.numel() - 1] = 5
    assert bool(tensor.damaged())


def test_the_check_finds_another_of_equal_places() -> None:
    """`special:equal` and `special:zeros` are lines of equal values."""
    found = problem("argmax", (40, 33), dim="-1")

    def last_of_equals(tensors: list[Guarded], outputs: list[Guarded]) -> None:
        x = tensors[0].values
        outputs[0].values.copy_(32 - x.flip(-1).argmax(-1, keepdim=True))

    def right(tensors: list[Guarded], outputs: list[Guarded]) -> None:
        outputs[0].values.copy_(tensors[0].values.argmax(-1, keepdim=True))

    for run, status in ((right, Status.PASSED), (last_of_equals, Status.WRONG)):
        assert Subset(found, seed=1).check(run, misaligned=True).status is status
        assert check_whole(found, run).status is status


def test_one_value_for_all_rows_is_seen_on_every_kind_of_row() -> None:
    """All rows of a case are of one kind, or each result would be a NaN."""
    found = problem("cross_entropy", (50, 20))

    def right(tensors: list[Guarded], outputs: list[Guarded]) -> None:
        x, y = tensors[0].values, tensors[1].values.flatten()
        outputs[0].values.copy_(torch.nn.functional.cross_entropy(x, y).view(1, 1))

    def off(tensors: list[Guarded], outputs: list[Guarded]) -> None:
        right(tensors, outputs)
        outputs[0].values.mul_(1 + 1e-4)

    def ignores_nothing(tensors: list[Guarded], outputs: list[Guarded]) -> None:
        x, y = tensors[0].values, tensors[1].values.flatten().clamp(min=0)
        outputs[0].values.copy_(torch.nn.functional.cross_entropy(x, y).view(1, 1))

    subset = Subset(found, seed=1)
    assert len({len(case.references) for case in subset._cases}) == 1
    assert len(subset._cases) == len(inputs.CYCLE) + 3, "and three of one row, where nothing is averaged"
    assert [case.inputs[0].values.shape[0] for case in subset._cases[-3:]] == [1, 1, 1]
    finite = [float(refs[0]._exact) for case in subset._cases for _, refs in case.references]
    assert sum(map(math.isfinite, finite)) > 10
    for run, status in ((right, Status.PASSED), (off, Status.WRONG), (ignores_nothing, Status.WRONG)):
        assert subset.check(run, misaligned=False).status is status
        assert check_whole(found, run).status is status


def test_rows_of_several_dims_are_what_the_function_gets() -> None:
    found = problem("sum", (7, 3, 5), dim="-2,-1", keepdim=True)

    def right(tensors: list[Guarded], outputs: list[Guarded]) -> None:
        outputs[0].values.copy_(tensors[0].values.sum(-1, keepdim=True))

    assert found.inputs[0].values.shape == (7, 15)
    assert Subset(found, seed=1).check(right, misaligned=True).status is Status.PASSED
    assert check_whole(found, right).status is Status.PASSED
    (copy, factor) = ceilings(found)[0]
    copy()
    assert factor == pytest.approx(1.0, abs=0.02), "half of what is read and written"


def test_of_very_long_rows_there_are_fewer_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksearch.evaluate.check._CASES_BYTES", {"cpu": 5 * 4 * 4000})
    assert 3 <= len(Subset(problem("sum", (4000,)), seed=1)._cases) <= 5

"""Linears at run time: PyTorch's product where a launch says so, outputs of one value a row, precision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import ksearch
from ksearch import operators, records
from ksearch.backends import LaunchError
from ksearch.invoke import Starter
from ksearch.launch import Launch, TensorMap
from ksearch.operators.program import Input, Role
from ksearch.runtime.handle import Handle
from ksearch.types import Workload
from tests.winners import in_use, put_in_force

SHAPE = (33, 48, 70)
"""BATCH, IN, OUT."""
OPS = ("linear_sigmoid_sum", "linear_sigmoid_scale_residual", "linear")


@ksearch.op
def linear_peak(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight).amax(-1)


class Recorder:
    """A kernel that notes what it is started with."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], int, int]] = []

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        self.calls.append((pointers, rows, stream))

    def entry(self, rows: int) -> None:
        pass

    def unload(self) -> None:
        pass


INPUTS = (Input("x", Role.LEFT), Input("weight", Role.RIGHT), Input("bias", Role.ROW))


def start(launch: Launch) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pointers that are given, and those that the kernel gets."""
    kernel, workload = Recorder(), Workload("f", (3, 5), inner=4)
    tensors = [torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)]
    given = (*(tensor.data_ptr() for tensor in tensors), torch.empty(3, 5).data_ptr())
    Starter(kernel, launch, workload, INPUTS, torch.device("cpu"))(tensors, given, 3, 0)
    ((pointers, rows, stream),) = kernel.calls
    assert (rows, stream) == (3, 0)
    return given, pointers


def test_a_kernel_that_needs_nothing_gets_the_pointers_alone() -> None:
    given, pointers = start(Launch())
    assert pointers == given


def test_scratch_comes_last() -> None:
    given, pointers = start(Launch(scratch_bytes=256))
    assert pointers[:-1] == given
    assert pointers[-1] not in (0, *given)


@pytest.mark.parametrize("scratch_bytes", [0, 512])
def test_the_product_stands_for_its_operands(scratch_bytes: int) -> None:
    given, pointers = start(Launch(torch_product=True, scratch_bytes=scratch_bytes))
    assert pointers[1:3] == given[2:]
    assert pointers[0] not in (0, *given)
    assert len(pointers) == 3 + bool(scratch_bytes)


def test_the_product_stands_for_a_bias_too_where_pytorch_adds_it() -> None:
    given, pointers = start(Launch(torch_product=True, torch_bias=2))
    assert pointers[0] not in (0, *given)
    assert pointers[1:] == given[3:]


@pytest.mark.parametrize("place", [0, 3])
def test_a_bias_that_is_none_is_refused_before_a_call(place: int) -> None:
    with pytest.raises(LaunchError, match=f"input {place} is a linear's bias, which it is not"):
        start(Launch(torch_product=True, torch_bias=place))


@pytest.mark.parametrize(
    "launch",
    [Launch(torch_bias=2), Launch(torch_product=True, torch_bias=-1)],
    ids=["no product", "negative"],
)
def test_a_file_that_names_no_bias_is_refused(launch: Launch) -> None:
    records.check_launch(Launch(torch_product=True, torch_bias=2))
    with pytest.raises(ValueError, match="torch_bias is"):
        records.check_launch(launch)


def test_a_launch_of_several_kernels_is_read_as_it_was() -> None:
    tile = TensorMap(1, "float32", 64, None, 32, 128)
    launch = Launch(
        entry="main",
        scratch_bytes=512,
        maps=(tile,),
        before=(Launch(entry="first"),),
        after=(Launch(block=64),),
    )
    assert Launch.read(json.loads(json.dumps(asdict(launch)))) == launch
    assert Launch.read({"threads": 2}) == Launch(threads=2), "as older databases have it"
    older = Launch.read({"torch_product": True})
    assert older.torch_bias is None, "a kernel of then adds the bias itself"
    biased = Launch(torch_product=True, torch_bias=2)
    assert Launch.read(json.loads(json.dumps(asdict(biased)))) == biased


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("linear")
    shapes = {"float32": (SHAPE, (2, *SHAPE)), "bfloat16": (SHAPE,)}
    workloads = [
        operators.get(op).workload(shape, dtype)
        for op in (*OPS, "linear_peak")
        for dtype, each in shapes.items()
        for shape in each
    ]
    put_in_force(made, "cpu", workloads)
    return made


@pytest.fixture
def launches(folder: Path) -> Iterator[object]:
    before = torch.get_float32_matmul_precision()
    with in_use(folder, "cpu") as counted:
        yield counted
    torch.set_float32_matmul_precision(before)


def made(*batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(2)
    shapes = ((*batch, *SHAPE[:2]), (SHAPE[2], SHAPE[1]), (SHAPE[2],))
    return tuple(torch.randn(shape, generator=draw).to(dtype) for shape in shapes)


def right(op: str, *tensors: torch.Tensor) -> torch.Tensor:
    exact = operators.get(op).reference(*(tensor.double() for tensor in tensors))
    assert isinstance(exact, torch.Tensor)
    return exact


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("op", OPS)
def test_what_was_tuned_runs_through_load_and_ops(op: str, batch: tuple[int, ...], launches) -> None:
    tensors = made(*batch)
    handle = ksearch.load(op, (*batch, *SHAPE), device="cpu")
    for called in (handle, getattr(ksearch.ops, op)):
        result = called(*tensors)
        torch.testing.assert_close(result.double(), right(op, *tensors), rtol=1e-5, atol=1e-5)
        out = torch.empty_like(result)
        assert called(*tensors, out=out) is out
        assert torch.equal(out, result)
    assert launches.count == 4


def test_one_value_a_row_comes_in_the_functions_own_shape(launches) -> None:
    for batch in ((), (2,)):
        x, weight, _ = made(*batch)
        result = ksearch.ops.linear_peak(x, weight)
        assert result.shape == x.shape[:-1]
        torch.testing.assert_close(result, linear_peak(x, weight))
    assert launches.count == 2


def test_an_out_of_another_shape_goes_to_pytorch_which_refuses(launches, caplog) -> None:
    tensors = made()
    handle = ksearch.load(OPS[0], SHAPE, device="cpu")
    with pytest.raises(ksearch.errors.UsageError, match=r"out is \(33, 70\)"):
        handle(*tensors, out=torch.empty(33, 70))
    assert "out is not of shape (33, 1)" in caplog.text
    assert launches.count == 0


def test_autocast_changes_nothing(launches) -> None:
    tensors = made()
    handle = ksearch.load(OPS[0], SHAPE, device="cpu")
    result = handle(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(handle(*tensors), result)
    assert launches.count == 2


def test_operands_that_require_gradients_do_not_hinder_where_none_are_taken(launches) -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in made())
    handle = ksearch.load(OPS[1], SHAPE, device="cpu")
    with torch.no_grad():
        assert not handle(x, weight, bias).requires_grad
    with torch.inference_mode():
        handle(x, weight, bias)
    assert launches.count == 2
    assert handle(x, weight, bias).requires_grad
    assert launches.count == 2


def test_a_strict_product_of_pytorch_never_runs_in_tf32(launches, caplog) -> None:
    """The kernel was checked on what PyTorch gives without it; another setting is another result."""
    tensors = made()
    handle: Handle = ksearch.load(OPS[0], SHAPE, device="cpu")
    torch.set_float32_matmul_precision("high")
    for _ in range(2):
        torch.testing.assert_close(handle(*tensors).double(), right(OPS[0], *tensors), rtol=1e-3, atol=1e-3)
    assert launches.count == 0
    assert caplog.text.count("may use TF32") == 1
    halves = made(dtype=torch.bfloat16)
    ksearch.load(OPS[0], SHAPE, torch.bfloat16, "cpu")(*halves)
    assert launches.count == 1, "halves know no TF32"
    torch.set_float32_matmul_precision("highest")
    handle(*tensors)
    assert launches.count == 2


def test_nothing_is_left_of_the_product(launches) -> None:
    """It lives for one call; results of calls do not share memory."""
    tensors = made()
    handle = ksearch.load(OPS[1], SHAPE, device="cpu")
    first = handle(*tensors)
    kept = first.clone()
    second = handle(tensors[0] * 2, *tensors[1:])
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)

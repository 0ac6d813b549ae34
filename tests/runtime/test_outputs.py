"""Ops of several outputs: a tuple comes back, from the kernel as from PyTorch, and `out` is one too.

The fake kernel fills its first output with 42 and its second with 43.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ksearch
from ksearch.errors import UsageError
from tests.runtime.conftest import promote

SHAPE = (4, 8)
OTHER = (2, 16)


def sum_and_first(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + y, x


@pytest.fixture
def op(backend):
    """Tuned for SHAPE; for OTHER there is only PyTorch."""
    ksearch.op(sum_and_first)
    promote("sum_and_first", SHAPE, alignment=16)
    return ksearch.ops.sum_and_first


def made(shape=SHAPE) -> tuple[Tensor, Tensor]:
    return torch.randn(shape), torch.randn(shape)


def empty(shape=SHAPE) -> tuple[Tensor, Tensor]:
    return torch.empty(shape), torch.empty(shape)


def by_kernel(results) -> bool:
    return [bool((each == 42 + k).all()) for k, each in enumerate(results)] == [True, True]


def test_a_kernel_gives_a_tuple(op, backend):
    x, y = made()
    results = op(x, y)
    assert type(results) is tuple
    assert by_kernel(results)
    assert backend.launched == [((*(t.data_ptr() for t in (x, y, *results)),), 4, 0)]


def test_pytorch_gives_a_tuple(op):
    x, y = made(OTHER)
    total, first = op(x, y)
    assert torch.equal(total, x + y)
    assert torch.equal(first, x)


@pytest.mark.parametrize("shape", [SHAPE, OTHER])
@pytest.mark.parametrize("kind", [tuple, list])
def test_out_is_written_and_given_back(op, kind, shape):
    (x, y), outs = made(shape), empty(shape)
    results = op(x, y, out=kind(outs))
    assert type(results) is tuple
    assert all(result is out for result, out in zip(results, outs, strict=True))
    assert by_kernel(outs) if shape == SHAPE else torch.equal(outs[0], x + y)


def test_both_are_seen_by_autograd(op):
    for position in range(2):
        outs = tuple(torch.ones(SHAPE) for _ in range(2))
        later = (torch.ones(SHAPE, requires_grad=True) * outs[position]).sum()
        assert by_kernel(op(*made(), out=outs))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            later.backward()


@pytest.mark.parametrize("shape", [SHAPE, OTHER])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda a, b: a, "out must be a tuple of 2 tensors, one for each output, and it is (Tensor)"),
        (lambda a, b: (a,), "out must be a tuple of 2 tensors"),
        (lambda a, b: (a, b, b.clone()), "out must be a tuple of 2 tensors"),
        (lambda a, b: (a, 3), "and it is (Tensor, int)"),
        (
            lambda a, b: (a, b.half()),
            "out[1] is ({0}, {1}) float16 on cpu, but output 1 is ({0}, {1}) float32",
        ),
        (lambda a, b: (a[1:], b), "out[0] is ("),
        (lambda a, b: (a, a), "out[0] and out[1] overlap in memory"),
    ],
)
def test_an_out_that_cannot_hold_the_results_is_an_error(op, wrong, says, shape):
    with pytest.raises(UsageError) as refused:
        op(*made(shape), out=wrong(*empty(shape)))
    assert says.format(*shape) in str(refused.value)
    assert str(refused.value).startswith("sum_and_first: ")


def test_one_output_takes_no_pair(backend):
    promote("softmax", SHAPE)
    with pytest.raises(UsageError, match=r"softmax: out must be a tensor, one for each output, and it is"):
        ksearch.ops.softmax(torch.randn(SHAPE), out=empty())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x, y: (x, torch.empty(SHAPE)), "out overlaps an input"),
        (lambda x, y: (torch.empty(SHAPE), y), "out overlaps an input"),
        (lambda x, y: (torch.empty(SHAPE), torch.empty(8, 4).t()), "out[1] is not contiguous"),
        (lambda x, y: (torch.empty(33)[1:].view(SHAPE), torch.empty(SHAPE)), "multiple of 16 bytes"),
        (lambda x, y: tuple(torch.empty(4, 16).split(8, 1)), "out[0] is not contiguous"),
    ],
)
def test_an_out_that_the_kernel_cannot_take_is_written_by_pytorch(op, caplog, make, reason):
    x, y = made()
    first, total = x.clone(), x + y
    outs = make(x, y)
    op(x, y, out=outs)
    assert reason in caplog.text
    assert torch.equal(outs[0], total)
    assert torch.equal(outs[1], first), "what the function gives back may be what it has just overwritten"


def test_outs_side_by_side_do_not_overlap(op):
    memory = torch.empty(64)
    assert by_kernel(op(*made(), out=(memory[:32].view(SHAPE), memory[32:].view(SHAPE))))
    assert by_kernel(op(*made(), out=(memory[32:].view(SHAPE), memory[:32].view(SHAPE))))


def test_gradients_come_from_pytorch(op):
    x, y = (tensor.requires_grad_() for tensor in made())
    total, first = op(x, y)
    (total * 2 + first * 3).sum().backward()
    assert (x.grad == 5).all()
    assert (y.grad == 2).all()


def test_torch_compile_sees_the_ops_own_function_or_a_kernel(op):
    x, y = made()
    outs = empty()

    def function(a, b, out):
        op(a, b, out=out)
        return op(a, b)[0] + 1

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert (compiled(x, y, outs) == 43).all(), "the kernel"
    assert torch.equal(outs[1], x), "with out, PyTorch"


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.functionalize,
        torch.vmap,
        lambda function: torch.compile(function, backend="eager", fullgraph=True),
    ],
    ids=["functionalize", "vmap", "compile"],
)
def test_an_out_without_memory_to_look_at_is_written_all_the_same(op, transform):
    """Even where the first one is the input that the second result is."""
    x, y = made()
    first, total, other = x.clone(), x + y, torch.empty(SHAPE)
    transform(lambda a, b, out: op(a, b, out=(a, out)))(x, y, other)
    assert torch.equal(x, total)
    assert torch.equal(other, first)


def test_a_tuple_of_one_is_a_tensor(backend):
    def doubled(x):
        return (x + x,)

    ksearch.op(doubled)
    x = torch.randn(SHAPE)
    assert torch.equal(ksearch.ops.doubled(x), x + x)
    promote("doubled", SHAPE)
    ksearch.runtime.refresh()
    assert (ksearch.ops.doubled(x) == 42).all()

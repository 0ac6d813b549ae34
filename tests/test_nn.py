"""`ksearch.nn`: torch.nn's constructors, parameters and answers, with kernels where there are some."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import ksearch
from ksearch import runtime
from ksearch.nn import MODULES
from tests.runtime.conftest import FakeBackend, backend, promote  # noqa: F401  (a fixture)

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Softmax": (-1,), "LogSoftmax": (-1,), "RMSNorm": (8, 1e-6), "LayerNorm": (8,), "Linear": (8, 5),
    "GELU": ("tanh",), "LeakyReLU": (0.2,), "ELU": (0.5,), "Hardtanh": (-2, 1), "Softplus": (2, 5),
    "GroupNorm": (2, 8), "BatchNorm1d": (8,), "BatchNorm2d": (8,), "BatchNorm3d": (8,),
}  # fmt: skip
INPLACE = ("LeakyReLU", "ELU", "Hardtanh", "ReLU", "SELU", "SiLU", "Mish", "Hardsigmoid", "Hardswish")
SHAPE = (4, 8)
SHAPES = {"BatchNorm2d": (4, 8, 3, 5), "BatchNorm3d": (4, 8, 2, 3, 5)}
"""Of modules that take no other."""


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    runtime.refresh()
    yield
    runtime.refresh()


def made(name: str, **named: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, with the same parameters."""
    torch.manual_seed(1)
    theirs = getattr(nn, name)(*ARGUMENTS.get(name, ()), **named)
    ours = getattr(ksearch.nn, name)(*ARGUMENTS.get(name, ()), **named)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def names() -> list[str]:
    return sorted(each.__name__ for each in MODULES)


def test_every_module_stands_for_torchs() -> None:
    assert {*names()} >= {
        "Softmax",
        "LogSoftmax",
        "RMSNorm",
        "LayerNorm",
        "GELU",
        "SiLU",
        "Sigmoid",
        "Linear",
    }
    assert all(
        issubclass(ours, theirs) and ours.__name__ == theirs.__name__ for theirs, ours in MODULES.items()
    )
    assert {name for name in names() if hasattr(made(name)[1], "inplace")} == {*INPLACE}


@pytest.mark.parametrize("name", names())
def test_answers_and_gradients_are_torchs(name: str) -> None:
    ours, theirs = made(name)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for copied in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        x = torch.randn(SHAPES.get(name, SHAPE), requires_grad=True)
        found, wanted = copied(x), theirs(x)
        torch.testing.assert_close(found, wanted)
        grad = torch.randn_like(wanted)
        inputs = [x, *copied.parameters()]
        torch.testing.assert_close(
            torch.autograd.grad(found, inputs, grad),
            torch.autograd.grad(wanted, [x, *theirs.parameters()], grad),
        )


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_a_batch_norm_keeps_its_statistics_as_torchs_does(name: str, kept: bool) -> None:
    ours, theirs = made(name, track_running_stats=kept, momentum=None)
    for _ in range(3):
        x = torch.randn(SHAPES.get(name, SHAPE)) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    wanted = theirs.state_dict()
    assert ("num_batches_tracked" in wanted) == kept
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=0)
    for each in (ours, theirs):
        each.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(ValueError, match="expected"):
        ours(x[None, None])


def test_a_batch_norm_runs_a_kernel_in_evaluation_alone(backend: FakeBackend) -> None:  # noqa: F811
    shape = SHAPES["BatchNorm2d"]
    promote("batchnorm", shape)
    ours, theirs = made("BatchNorm2d")
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
        assert (ours.eval()(x) == 42).all()
        report = ksearch.patch(theirs, x)
        assert report.swapped == ("",)
        assert theirs.training
        torch.testing.assert_close(theirs(x), ours.train()(x), rtol=0, atol=0)
        assert (theirs.eval()(x) == 42).all()
        report.undo()
        assert type(theirs) is nn.BatchNorm2d
        assert ksearch.patch(theirs).swapped == ("",)
        assert ksearch.patch(nn.BatchNorm2d(9)).swapped == (), "of as many channels as a winner has"


@pytest.mark.parametrize("name", INPLACE)
def test_in_place(name: str) -> None:
    ours, theirs = made(name, inplace=True)
    x = torch.randn(SHAPE)
    wanted = theirs(x.clone())
    assert ours(x) is x
    torch.testing.assert_close(x, wanted)
    start = torch.randn(SHAPE, requires_grad=True)
    ours(start * 1).sum().backward()
    found, start.grad = start.grad, None
    theirs(start * 1).sum().backward()
    torch.testing.assert_close(found, start.grad)


def test_another_dim_and_no_eps_are_torchs() -> None:
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ksearch.nn.Softmax(1)(x), x.softmax(1))
    torch.testing.assert_close(ksearch.nn.RMSNorm(8)(x), nn.RMSNorm(8)(x))
    torch.testing.assert_close(ksearch.nn.LayerNorm((3, 8))(x), nn.LayerNorm((3, 8))(x))
    torch.testing.assert_close(ksearch.nn.LayerNorm(8, bias=False)(x), nn.LayerNorm(8, bias=False)(x))


@pytest.mark.parametrize(("name", "op"), [("Softmax", "softmax"), ("RMSNorm", "rmsnorm"), ("SiLU", "silu")])
def test_kernels_run(name: str, op: str, backend: FakeBackend) -> None:  # noqa: F811
    promote(op, SHAPE)
    ours, _ = made(name)
    with torch.no_grad():
        assert (ours(torch.randn(SHAPE)) == 42).all()
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        assert (compiled(torch.randn(SHAPE)) == 42).all()

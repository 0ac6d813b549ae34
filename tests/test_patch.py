"""`ksearch.patch`: what it swaps, what it says, and that all of it can be undone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ksearch
from ksearch import runtime
from ksearch.errors import UsageError
from tests.runtime.conftest import FakeBackend, backend, promote  # noqa: F401  (a fixture)


class Own(nn.SiLU):
    pass


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8, eps=1e-6)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Dropout(0.5), Own())
        self.again = self.body[1]
        self.never = nn.GELU()
        self.head = nn.Softmax(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.norm(x)))


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    runtime.refresh()
    yield
    runtime.refresh()


@pytest.fixture
def model(backend: FakeBackend) -> Model:  # noqa: F811
    torch.manual_seed(3)
    return Model()


def classes(model: nn.Module) -> dict[str, type]:
    return {path: type(each) for path, each in model.named_modules()}


def test_with_inputs_what_has_a_kernel_for_them_is_swapped(model: Model) -> None:
    promote("softmax", (4, 16))
    promote("silu", (3, 16))
    promote("rmsnorm", (4, 8), None)
    before, x = classes(model), torch.randn(4, 8)
    state, wanted = {name: each.clone() for name, each in model.state_dict().items()}, model.eval()(x)
    model.train()
    report = ksearch.patch(model, x)
    assert all(each.training for each in model.modules())
    assert report.swapped == ("head",)
    assert type(model.head) is ksearch.nn.Softmax
    assert {**classes(model), "head": nn.Softmax} == before
    with torch.no_grad():
        assert (model(x) == 42).all()
    text = str(report)
    assert "1 of 5 modules swapped" in text
    assert "head Softmax -> softmax 4x16 float32 exact: 2.00 x PyTorch" in text
    assert "body.1 SiLU -- silu 4x16 float32 fallback: no winner for it" in text
    assert "ksearch tune silu --shape 4x16" in text
    assert "norm RMSNorm -- rmsnorm 4x8 float32 exact: PyTorch is the fastest that was found" in text
    assert "never GELU -- gelu: it was not called with a tensor" in text
    assert "Own" not in text
    report.undo()
    report.undo()
    assert classes(model) == before
    assert report.swapped == ()
    torch.testing.assert_close(model.eval()(x), wanted)
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())


def test_without_inputs_what_some_winner_fits_is_swapped(model: Model) -> None:
    promote("softmax", (4, 16))
    promote("rmsnorm", (4, 9))
    promote("silu", (3, 16))
    promote("gelu", (3, 16), approximate="tanh")
    promote("linear", (4, 8, 16), bias="none")
    before = classes(model)
    with ksearch.patch(model) as report:
        assert report.swapped == ("body.1", "head")
        assert model.again is model.body[1], "one module, two places"
        assert "head Softmax -> softmax: winners for 4x16 float32" in str(report)
        assert "norm RMSNorm -- rmsnorm: no winner fits it on Fake CPU" in str(report)
    assert classes(model) == before


def test_what_a_module_is_decides(model: Model) -> None:
    promote("rmsnorm", (4, 8))
    promote("linear", (4, 8, 16))
    report = ksearch.patch(model)
    assert report.swapped == ("norm", "body.0")
    report.undo()
    model.norm.eps = 1e-3
    model.half()
    assert ksearch.patch(model).swapped == ()


def test_hooks_parameters_and_modes_stay(model: Model) -> None:
    promote("rmsnorm", (4, 8))
    seen: list[int] = []
    model.norm.register_forward_hook(lambda *_: seen.append(1))
    weight, norm = model.norm.weight, model.norm
    with ksearch.patch(model):
        assert model.norm is norm
        assert model.norm.weight is weight
        model(torch.randn(4, 8))
        model.norm.eval()
    assert seen == [1]
    assert not model.norm.training


def test_the_model_itself(backend: FakeBackend) -> None:  # noqa: F811
    promote("softmax", (2, 3))
    model = nn.Softmax(-1)
    report = ksearch.patch(model, torch.randn(2, 3))
    assert type(model) is ksearch.nn.Softmax
    assert "(model) Softmax -> softmax" in str(report)


def test_a_model_that_fails_is_left_as_it_was(model: Model) -> None:
    promote("rmsnorm", (4, 8))
    before = classes(model)
    with pytest.raises(RuntimeError):
        ksearch.patch(model, torch.randn(4, 7))
    assert classes(model) == before
    assert all(each.training and not each._forward_pre_hooks for each in model.modules())


def test_something_else_than_a_module() -> None:
    with pytest.raises(UsageError, match=r"takes a torch\.nn\.Module, got a function"):
        ksearch.patch(lambda x: x)

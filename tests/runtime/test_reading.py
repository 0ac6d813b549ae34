"""Calls of `ksearch.ops.<name>` in every form: the roles that tensors have, and PyTorch's own way to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ksearch
from ksearch import operators
from ksearch.errors import UsageError
from ksearch.runtime import loader
from ksearch.runtime.reading import Reader
from tests.runtime.conftest import promote

SHAPE = (4, 8)
ops = ksearch.ops


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


ROLES = {
    "full": [(4, 8)],
    "row": [(8,), (1, 8)],
    "column": [(4, 1)],
    "scalar": [(), (1,), (1, 1)],
}


@pytest.mark.parametrize("role", ROLES)
def test_the_role_of_a_tensor_follows_from_its_shape(backend, role):
    promote("add", SHAPE, other=role)
    for shape in ROLES[role]:
        assert (ops.add(draw(*SHAPE), draw(*shape)) == 42).all()
        assert (ops.add(draw(*SHAPE), other=draw(*shape)) == 42).all()
    for other in set(ROLES) - {role}:
        x, y = draw(*SHAPE), draw(*ROLES[other][0])
        torch.testing.assert_close(ops.add(x, y), x + y)


def test_where_several_roles_fit_it_is_always_the_same(backend):
    promote("add", (4, 1), other="row")
    promote("add", (1, 8), 7.0, other="full")
    assert (ops.add(draw(4, 1), draw(1)) == 42).all()
    assert (ops.add(draw(1, 8), draw(1, 8)) == 7).all()


def test_an_optional_tensor_may_be_absent(backend):
    promote("layernorm", SHAPE, weight="row", bias="none")
    promote("layernorm", SHAPE, 7.0, weight="none", bias="row")
    x, weight = draw(*SHAPE), draw(8)
    assert (ops.layernorm(x, weight) == 42).all()
    assert (ops.layernorm(x, weight, None) == 42).all()
    assert (ops.layernorm(x, bias=weight) == 7).all()
    assert (ops.layernorm(x, None, weight) == 7).all()
    torch.testing.assert_close(ops.layernorm(x), F.layer_norm(x, (8,)))
    handle = ksearch.load("layernorm", SHAPE, weight="row", bias="none")
    assert (handle(x, weight) == 42).all()
    assert (handle(x, weight, None) == 42).all()
    absent = ksearch.load("layernorm", SHAPE, weight="none", bias="none")
    torch.testing.assert_close(absent(x, None, None), F.layer_norm(x, (8,)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((draw(4, 8), draw(4)[:, None, None]), "other of shape (4, 1, 1) is none of: full, row, column, sc"),
        ((draw(8), draw(4, 8)), "other of shape (4, 8) is none of"),
        ((draw(4, 8), 2.5), "other is a float, not a tensor"),
        ((torch.arange(8), torch.arange(8)), "no kernel for int64"),
        ((draw(4, 8).double(), draw(8)), "no kernel for float64"),
    ],
)
def test_what_fits_no_role_runs_pytorch_and_says_why(backend, caplog, arguments, says):
    for role in ROLES:
        promote("add", SHAPE, other=role)
    for _ in range(2):
        result = ops.add(*arguments)
        assert torch.equal(result, torch.add(*arguments))
        assert result.dtype is torch.add(*arguments).dtype
    assert len(caplog.records) == 1
    assert says in caplog.text


def test_tensors_of_other_dtypes_are_pytorchs(backend, caplog):
    promote("add", SHAPE, other="row")
    promote("add", SHAPE, other="scalar")
    x = draw(*SHAPE)
    for other in (draw(8).double(), torch.tensor(3), torch.tensor(True)):
        assert torch.equal(ops.add(x, other), x + other)
    assert "an input is not torch.float32" in caplog.text


def test_the_same_call_with_the_same_tensor_twice(backend):
    """The route that was found for add(x, x) must not hand one tensor on twice."""
    x, y = draw(*SHAPE), draw(*SHAPE) + 1
    assert torch.equal(ops.add(x, x), x + x)
    assert torch.equal(ops.add(x, y), x + y)
    assert torch.equal(ops.add(y, other=x, alpha=2), torch.add(y, x, alpha=2))


def test_everything_is_decided_once_for_each_way_of_calling(backend, monkeypatch):
    read, looked = [], []
    original, find = Reader.read, loader.lookup.find
    monkeypatch.setattr(Reader, "read", lambda *args: read.append(1) or original(*args))
    monkeypatch.setattr(loader.lookup, "find", lambda *args: looked.append(1) or find(*args))
    promote("layernorm", SHAPE)
    for _ in range(3):
        x, weight, bias = draw(*SHAPE), draw(8), draw(8)
        assert (ops.layernorm(x, weight, bias) == 42).all()
        assert (ops.layer_norm(x, (8,), weight, bias) == 42).all()
        assert (ops.layer_norm(x, [8], weight=weight, bias=bias, eps=1e-5) == 42).all()
    assert (len(read), len(looked)) == (3, 1)


def test_numbers_in_place_of_tensors_are_not_kept_without_end(backend, monkeypatch):
    monkeypatch.setattr("ksearch.runtime.dispatch.MOST_ROUTES", 8)
    promote("mul", SHAPE)
    x = draw(*SHAPE)
    for step in range(100):
        assert torch.equal(ops.mul(x, step / 7), x * (step / 7))
    assert len(ops.mul._routes) <= 8
    assert (ops.mul(x, x) == 42).all()
    for step in range(20):
        assert torch.equal(ops.clamp(x, max=step / 7), x.clamp(max=step / 7))
    assert len(ops.clamp._handles) <= 8


FORMS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "softmax_dim": ("softmax", lambda x: ops.softmax(x, dim=1), lambda x: F.softmax(x, 1)),
    "softmax_last": ("softmax", lambda x: ops.softmax(x, -1), lambda x: F.softmax(x, -1)),
    "softmax_dtype": ("softmax", lambda x: ops.softmax(x, -1, dtype=x.dtype), lambda x: F.softmax(x, -1)),
    "softmax_input": ("softmax", lambda x: ops.softmax(input=x, dim=-1), lambda x: F.softmax(x, -1)),
    "log_softmax": ("log_softmax", lambda x: ops.log_softmax(x, 1), lambda x: F.log_softmax(x, 1)),
    "gelu": ("gelu", lambda x: ops.gelu(x, approximate="none"), F.gelu),
    "leaky_relu": ("leaky_relu", lambda x: ops.leaky_relu(x, 0.01), F.leaky_relu),
    "elu": ("elu", lambda x: ops.elu(x, 1), F.elu),
    "softplus": ("softplus", lambda x: ops.softplus(x, beta=1, threshold=20), F.softplus),
    "hardtanh": ("hardtanh", lambda x: ops.hardtanh(x, -1, 1), F.hardtanh),
    "add": ("add", lambda x: ops.add(x, x, alpha=1), lambda x: torch.add(x, x)),
    "rms_norm": (
        "rmsnorm",
        lambda x: ops.rms_norm(x, (8,), x[0], 1e-6),
        lambda x: F.rms_norm(x, (8,), x[0], 1e-6),
    ),
    "rmsnorm": ("rmsnorm", lambda x: ops.rmsnorm(x, x[0]), lambda x: F.rms_norm(x, (8,), x[0], 1e-6)),
    "layer_norm": (
        "layernorm",
        lambda x: ops.layer_norm(x, 8 if x.dim() == 2 else [8], x[0], x[1]),
        lambda x: F.layer_norm(x, (8,), x[0], x[1]),
    ),
    "layer_norm_by_name": (
        "layernorm",
        lambda x: ops.layer_norm(x, normalized_shape=x.shape[-1:], weight=x[0], bias=x[1], eps=1e-5),
        lambda x: F.layer_norm(x, (8,), x[0], x[1]),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_as_torch_is_called_finds_the_kernel(backend, form):
    op, ours, torchs = FORMS[form]
    x = draw(*SHAPE)
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=0)
    promote(op, SHAPE)
    ksearch.runtime.refresh()
    assert (ours(x) == 42).all()
    y = draw(5, 8).double()
    torch.testing.assert_close(ours(y), torchs(y), rtol=0, atol=0)


OTHERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "softmax_of_rows": (lambda x: ops.softmax(x, dim=0), lambda x: F.softmax(x, 0)),
    "softmax_wider": (
        lambda x: ops.softmax(x, dtype=torch.float64),
        lambda x: F.softmax(x, -1, dtype=torch.float64),
    ),
    "two_dims": (lambda x: ops.layer_norm(x, (4, 8)), lambda x: F.layer_norm(x, (4, 8))),
    "no_eps": (lambda x: ops.rms_norm(x, (8,)), lambda x: F.rms_norm(x, (8,))),
    "tensor_bound": (lambda x: ops.clamp(x, x[0]), lambda x: torch.clamp(x, x[0])),
    "inplace": (lambda x: ops.relu(x.clone(), inplace=True), F.relu),
    "number": (lambda x: ops.mul(x, 3), lambda x: x * 3),
    "bool_dim": (lambda x: ops.add(x, True), lambda x: torch.add(x, True)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_op_is_not_is_answered_by_torch_itself(backend, caplog, name):
    ours, torchs = OTHERS[name]
    x = draw(*SHAPE)
    for _ in range(2):
        result = ours(x)
        torch.testing.assert_close(result, torchs(x), rtol=0, atol=0)
    assert len(caplog.records) == 1
    assert "runs PyTorch" in caplog.text


def test_out_is_written_by_torchs_answer_too(backend):
    x, out = draw(*SHAPE), torch.empty(SHAPE)
    assert ops.softmax(x, dim=0, out=out) is out
    assert torch.equal(out, F.softmax(x, 0))
    with pytest.raises(UsageError, match=r"softmax: out is \(3,\) float32"):
        ops.softmax(x, dim=0, out=torch.empty(3))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: ops.softmax(x, bogus=1), TypeError, "bogus"),
        (ops.add, TypeError, "add"),
        (ops.clamp, RuntimeError, "At least one"),
        (lambda x: ops.layer_norm(x, (7,)), RuntimeError, "normalized_shape"),
        (ops.swiglu, UsageError, r"swiglu takes 2 tensors \(gate, up\), not 1"),
        (lambda x: ops.swiglu(x, x, x), UsageError, "swiglu takes 2 tensors .*, not 3"),
        (lambda x: ops.swiglu(x, x, gate=x), UsageError, "gate is given twice"),
        (lambda x: ops.residual_add(x, x, scale="big"), UsageError, "option scale is 'big'"),
        (lambda x: ops.residual_add(x, None), UsageError, "residual_add takes 2 tensors"),
        (lambda x: ops.scaled_masked_softmax(x, softly=True), UsageError, "no option 'softly'"),
        (lambda x: ops.add(other=x), UsageError, "add takes a tensor first"),
    ],
)
def test_what_neither_takes_is_an_error(backend, call, error, says):
    for _ in range(2):
        with pytest.raises(error, match=says):
            call(draw(*SHAPE))


COMPILED: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (lambda x: ops.softmax(x, dim=0), lambda x: F.softmax(x, 0)),
    (lambda x: ops.layer_norm(x, (8,), x[0], x[1]), lambda x: F.layer_norm(x, (8,), x[0], x[1])),
    (lambda x: ops.layer_norm(x, (4, 8)), lambda x: F.layer_norm(x, (4, 8))),
    (lambda x: ops.add(x, x[0], alpha=2), lambda x: torch.add(x, x[0], alpha=2)),
    (lambda x: ops.add(x, 2.5), lambda x: x + 2.5),
    (lambda x: ops.clamp(x, None, 0.5), lambda x: x.clamp(max=0.5)),
    (lambda x: ops.clamp(x, x[0]), lambda x: x.clamp(x[0])),
    (lambda x: ops.rmsnorm(x, eps=0.5), lambda x: F.rms_norm(x, (8,), None, 0.5)),
)


@pytest.mark.parametrize("number", range(len(COMPILED)))
def test_torch_compile_traces_every_form(backend, number):
    ours, torchs = COMPILED[number]
    x = draw(*SHAPE)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), torchs(x), rtol=0, atol=0)


def test_an_alias_is_the_same_function():
    assert ops.rms_norm is ops.rmsnorm
    assert operators.names().count("rms_norm") == 0

"""Calls of ops that start with a linear: the workload that live tensors make, and the policies that do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ksearch
from ksearch import env, operators
from ksearch.runtime import Match, dispatch
from ksearch.runtime.precision import allows_tf32
from ksearch.runtime.reading import Reader, Reading
from ksearch.store import Store
from ksearch.types import Winner
from tests.runtime.conftest import TARGET

X, WEIGHT, BIAS = torch.randn(2, 3, 16), torch.randn(8, 16), torch.randn(8)


@pytest.fixture
def mine() -> operators.Op:
    @ksearch.op(b=("row", "none"))
    def scaled_layer(x: Any, w: Any, gain: Any, b: Any = None, *, by: float = 1.0) -> Any:
        return F.linear(x, w, b) * gain * by

    return operators.get("scaled_layer")


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def read(op: str | operators.Op, *args: Any, **named: Any) -> Reading:
    return Reader(operators.resolve(op)).read(args, named)


@pytest.mark.parametrize(
    ("args", "named", "bias"),
    [
        ((X, WEIGHT, BIAS), {}, "row"),
        ((X, WEIGHT), {}, "none"),
        ((X, WEIGHT, None), {}, "none"),
        ((X, WEIGHT), {"bias": BIAS[None, None]}, "row"),
        ((X,), {"bias": BIAS, "weight": WEIGHT}, "row"),
    ],
)
def test_the_workload_is_that_of_the_operands(
    args: tuple[Any, ...], named: dict[str, Any], bias: str
) -> None:
    found = read("linear_sigmoid_sum", *args, **named)
    assert (found.dims, found.roles, found.reason) == ((2, 3, 16, 8), {"bias": bias}, "")
    assert found.has_linear
    workload = operators.get("linear_sigmoid_sum").workload(found.dims, **found.options, **found.roles)
    assert (workload.shape, workload.inner) == ((2, 3, 8), 16)
    assert found.tensors(args, named)[1] is WEIGHT


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((X, WEIGHT.t()), "weight of shape (16, 8) is no weight for (2, 3, 16)"),
        ((X, WEIGHT[0]), "weight of shape (16,) is no weight for (2, 3, 16)"),
        ((X[0, 0], WEIGHT), "weight of shape (8, 16) is no weight for (16,)"),
        ((X, WEIGHT, BIAS[:4]), "bias of shape (4,) is none of: row, none"),
        ((X, WEIGHT, 2.0), "bias is a float, not a tensor"),
    ],
)
def test_what_is_no_linear_has_no_kernel(args: tuple[Any, ...], says: str) -> None:
    assert read("linear", *args).reason == says


def test_what_has_no_kernel_is_pytorchs(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert torch.equal(ksearch.ops.linear(X[0, 0], WEIGHT), F.linear(X[0, 0], WEIGHT))
    assert torch.equal(ksearch.ops.linear(X, WEIGHT[0]), F.linear(X, WEIGHT[0]))
    with pytest.raises(RuntimeError):
        ksearch.ops.linear(X, WEIGHT.t())
    assert "linear runs PyTorch: weight of shape (8, 16) is no weight for (16,)" in caplog.text


def test_torchs_own_call_has_names_of_its_own(backend: Any) -> None:
    exact = F.linear(X, WEIGHT, BIAS)
    assert torch.equal(ksearch.ops.linear(input=X, weight=WEIGHT, bias=BIAS), exact)
    assert torch.equal(ksearch.ops.linear(X, bias=BIAS, weight=WEIGHT), exact)


def test_roles_of_a_function_of_ones_own_follow_from_what_the_linear_gives(mine: operators.Op) -> None:
    gain = torch.randn(2, 3, 8)
    with_bias = read(mine, X, WEIGHT, gain, BIAS, by=2.0)
    assert (with_bias.dims, with_bias.roles) == ((2, 3, 16, 8), {"b": "row"})
    assert read(mine, X, WEIGHT, gain).roles == {"b": "none"}


def test_an_op_without_a_linear_has_the_shape_of_its_first_tensor() -> None:
    found = read("add", X, X)
    assert (found.dims, found.has_linear, found.roles) == ((2, 3, 16), False, {"other": "full"})


def test_a_compiler_sees_pytorchs_own_function(mine: operators.Op) -> None:
    """Reading a call must not trace the op while torch.compile traces the call."""
    gain = torch.randn(2, 3, 8)

    def layer(x: torch.Tensor, weight: torch.Tensor) -> Any:
        return ksearch.ops.scaled_layer(x, weight, gain) + ksearch.ops.linear_sigmoid_sum(x, weight, BIAS)

    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, WEIGHT), layer(X, WEIGHT))


# Policies


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Dims and policies of every lookup."""
    seen: list[tuple[Any, Any]] = []
    original = dispatch.load_best

    def load_best(op: Any, dims: Any, *args: Any, policies: Any, **more: Any) -> Any:
        seen.append((dims, policies))
        return original(op, dims, *args, policies=policies, **more)

    monkeypatch.setattr(dispatch, "load_best", load_best)
    return seen


def test_tf32_is_asked_for_where_pytorch_may_use_it(
    backend: Any, loaded: list[tuple[Any, Any]], request: pytest.FixtureRequest
) -> None:
    for _ in range(2):
        ksearch.ops.linear(X, WEIGHT)
        ksearch.ops.linear(X.bfloat16(), WEIGHT.bfloat16())
    request.getfixturevalue("tf32")
    for _ in range(2):
        ksearch.ops.linear(X, WEIGHT)
        ksearch.ops.linear(X.bfloat16(), WEIGHT.bfloat16())
        ksearch.ops.softmax(X)
    dims = (2, 3, 16, 8)
    assert [each for each in loaded if each[0] != (2, 3, 16)] == [
        (dims, ("strict",)),
        (dims, ("strict",)),
        (dims, ("tf32", "strict")),
    ]
    assert (torch.Size((2, 3, 16)), ("strict",)) in loaded


@pytest.mark.parametrize("kept", [("strict",), ("tf32",), ("strict", "tf32")])
def test_the_policy_that_there_is_a_winner_for_is_taken(
    backend: Any, tf32: None, kept: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    op = operators.get("linear")
    with Store.open(env.database_path()) as store:
        for policy in kept:
            workload = op.workload((2, 3, 16, 8), policy=policy, bias="none")
            winner = Winner(workload, TARGET, None, None, None, 1.0, 1.0, 1.0)
            store.promote(winner, source=None, binary=None, environment={})
    found = ksearch.ops.linear
    found(X, WEIGHT)
    (handle,) = found._handles.values()
    assert (handle.match, handle.workload.policy) == (Match.EXACT, max(kept))
    assert caplog.text == ""
    strict = ksearch.load("linear", "2x3x16x8", bias="none")
    assert strict.match is (Match.EXACT if "strict" in kept else Match.FALLBACK)
    loose = ksearch.load("linear", (2, 3, 16, 8), policy="tf32", bias="none")
    assert loose.match is (Match.EXACT if "tf32" in kept else Match.FALLBACK)


def test_what_to_type_for_a_winner_names_the_dims_and_the_policy(backend: Any) -> None:
    handle = ksearch.load("linear", (2, 3, 16, 8), policy="tf32")
    assert "ksearch tune linear --shape 2x3x16x8 --dtype float32 --device cpu --policy tf32" in handle.reason


def test_tf32_is_allowed_however_it_was_said() -> None:
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, allowed in (("high", True), ("medium", True), ("highest", False)):
            torch.set_float32_matmul_precision(precision)
            assert allows_tf32() is allowed
        for flag in (True, False):
            matmul.allow_tf32 = flag
            assert allows_tf32() is flag
        matmul.fp32_precision = "tf32"
        assert allows_tf32()
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before

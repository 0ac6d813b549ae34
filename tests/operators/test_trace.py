"""Tracing: what is merged and dropped, what the digest sees, and one clear line for what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch.errors import TraceError
from ksearch.operators.program import Input, Program, Role
from ksearch.operators.trace import trace
from tests.operators.interpreter import evaluate, evaluate_all

WEIGHT = torch.ones(4)


def program_of(function: Callable[..., Any], *inputs: str, **options: Any) -> Program:
    return trace(function, [Input(name) for name in inputs or ("x",)], options)


def ops_of(program: Program) -> list[str]:
    return [node.op for node in program.nodes]


def test_equal_expressions_are_merged() -> None:
    program = program_of(lambda x: torch.exp(x + 1) + (1 + x).exp())
    assert ops_of(program).count("exp") == 1
    assert ops_of(program).count("+") == 2


def test_negative_zero_and_nan_keep_their_meaning() -> None:
    positive = program_of(lambda x: torch.where(x > 0, x, 0.0) + math.nan)
    negative = program_of(lambda x: torch.where(x > 0, x, -0.0) + math.nan)
    assert positive != negative
    assert positive.digest != negative.digest
    assert positive.schedule().text != negative.schedule().text
    x = torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    result = evaluate(program_of(lambda x: 1 / torch.where(x > 0, x, -0.0)), x)
    assert result.tolist() == [[-math.inf, 0.5]]


def test_constants_are_folded_and_identities_dropped() -> None:
    def function(x: Any) -> Any:
        return (x * torch.ones_like(x) + torch.full_like(x, 2.0).exp()) / 1

    program = program_of(function)
    assert ops_of(program) == ["input", "const", "+"]
    assert program.nodes[1].args[0] == pytest.approx(math.exp(2))


def test_what_the_result_does_not_need_is_dropped() -> None:
    def function(x: Any, y: Any) -> Any:
        _unused = torch.exp(y).sum(dim=-1, keepdim=True)
        return x + 1

    program = program_of(function, "x", "y")
    assert ops_of(program) == ["input", "const", "+"]
    assert [item.name for item in program.inputs] == ["x", "y"]


def test_several_outputs_in_the_order_in_which_they_are_returned() -> None:
    def function(x: Any, y: Any) -> Any:
        total = x + y
        return torch.softmax(total, -1), total, x, y + x

    program = program_of(function, "x", "y")
    norm, total, itself, again = program.outputs
    assert total == again != norm
    assert program.nodes[total].op == "+"
    assert program.nodes[itself].args == ("x",)
    x, y = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    for result, right in zip(evaluate_all(program, x, y), function(x, y), strict=True):
        torch.testing.assert_close(result, right)
    swapped = program_of(lambda x, y: function(x, y)[::-1], "x", "y")
    assert swapped.digest != program.digest


def test_a_tuple_of_one_is_one_output() -> None:
    one = program_of(lambda x: (x + 1,))
    assert one == program_of(lambda x: [x + 1]) == program_of(lambda x: x + 1)


def test_nodes_are_in_order_of_definition() -> None:
    program = program_of(lambda x: torch.softmax(x, -1) * x)
    for i, node in enumerate(program.nodes):
        assert all(operand < i for operand in node.operands)


def test_a_long_program_is_no_problem() -> None:
    def function(x: Any) -> Any:
        for k in range(1500):
            x = x * 1.5 + k
        return x

    assert len(program_of(function).nodes) > 3000


def test_options_are_python_values_and_may_decide() -> None:
    def function(x: Any, *, slope: float, double: bool) -> Any:
        y = F.leaky_relu(x, slope)
        return y * 2 if double else y

    plain = program_of(function, slope=0.1, double=False)
    assert "*" in ops_of(plain)
    assert plain.digest != program_of(function, slope=0.2, double=False).digest
    assert len(program_of(function, slope=0.1, double=True).nodes) > len(plain.nodes)


def test_digest_follows_the_meaning_not_the_spelling() -> None:
    def one(x: Any) -> Any:
        gate = torch.sigmoid(x)
        return x * gate

    def other(x: Any) -> Any:
        _unused = x + 7
        s = x.sigmoid()
        return x * s

    assert program_of(one).digest == program_of(other).digest
    assert program_of(one).digest == program_of(F.silu).digest
    assert program_of(one).digest != program_of(lambda x: x * torch.tanh(x)).digest
    assert program_of(lambda x: x + 1.0).digest != program_of(lambda x: x + 1.0000001).digest
    roles = [(Role.FULL, Role.ROW), (Role.FULL, Role.FULL)]
    digests = {trace(torch.add, [Input("x", a), Input("y", b)], {}).digest for a, b in roles}
    assert len(digests) == 2


def _branch(x: Any) -> Any:
    if x.sum() > 0:
        return x
    return -x


def _in_place(x: Any) -> Any:
    x += 1
    return x


def _set_item(x: Any) -> Any:
    x[0] = 1
    return x


def _outside(x: Any) -> Any:
    return math.exp(x)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "unknown": (lambda x: torch.logcumsumexp(x, dim=-1), "logcumsumexp is not supported"),
    "nearest": (torch.sinh, "nearest is sin"),
    "branch": (_branch, "branches on the value of a tensor"),
    "iterate": (lambda x: sum(v for v in x), "iterates over a tensor"),
    "in_place_sign": (_in_place, "changed in place"),
    "in_place_item": (_set_item, "changed in place"),
    "in_place_method": (lambda x: x.add_(1), "add_ changes a tensor in place"),
    "in_place_flag": (lambda x: F.relu(x, inplace=True), "inplace=True is not supported"),
    "python_math": (_outside, "cannot run on traced tensors: must be real number"),
    "captured": (lambda x: x * WEIGHT, "make it an input"),
    "parameter": (torch.nn.LayerNorm(4), "make it an input"),
    "no_outputs": (lambda x: (), "returns an empty tuple"),
    "named_outputs": (lambda x: {"y": x}, "returns a dict"),
    "nested_outputs": (lambda x: (x, [x + 1]), "returns a list as output 1"),
    "number_among_outputs": (lambda x: (3.0, x), "returns 3.0 as output 0"),
    "constant_output": (lambda x: (x, torch.zeros_like(x)), "output 1 is the same for every element"),
    "mask_output": (lambda x: (x, x > 0), "output 1 must be a tensor, not a comparison"),
    "no_tensor": (lambda x: 3.0, "returns 3.0"),
    "constant": (torch.zeros_like, "is the same for every element"),
    "mask_result": (lambda x: x > 0, "must be a tensor, not a comparison"),
    "mask_sum": (lambda x: (x > 0) + (x < 1), "not a comparison"),
    "two_dims": (lambda x: x.sum() + x.sum(-1), "all of an op are over the same dims"),
    "gap": (lambda x: x.sum(dim=(-3, -1)), "reduces over dim=(-3, -1)"),
    "total_in_a_row": (lambda x: x - x.amax(-1, keepdim=True).sum(), "a sum over all rows comes last"),
    "total_and_rows": (lambda x: (x.sum(-1).mean(), x.sum(-1)), "must be one value for all, too"),
    "no_reduction": (lambda x: F.mse_loss(x, x, reduction="most"), "is none of 'mean', 'sum' and 'none'"),
    "norm_of_order_3": (lambda x: torch.linalg.vector_norm(x, 3), "only the norms of order 1, 2"),
    "other_distance": (lambda x: F.triplet_margin_loss(x, x, x, p=1), "only p=2"),
    "batch_of_rows": (lambda x: F.kl_div(x.log_softmax(-1), x, reduction="batchmean"), "the first dim is"),
    "no_keepdim": (lambda x: x - x.sum(dim=-1), "write keepdim=True"),
    "other_dim": (lambda x: x - x.mean(dim=0, keepdim=True), "reduces over dim=0"),
    "positive_dim": (lambda x: torch.softmax(x, dim=1), "write dim=-1"),
    "all_dims": (lambda x: x.softmax(-1) - x.max(), "reduces over everything"),
    "default_dim": (F.normalize, "write dim=-1"),
    "reduced_again": (lambda x: x - x.amax(-1, True).sum(-1, True), "nothing left to reduce"),
    "indices": (lambda x: x + x.max(-1, keepdim=True)[1], "index of a maximum"),
    "half": (lambda x: x.to(torch.float16) + 1, "a cast to torch.float16"),
    "double_softmax": (lambda x: F.softmax(x, -1, dtype=torch.float64), "torch.float64"),
    "indexing": (lambda x: x[..., :1] + x, "indexing a tensor"),
    "rows": (lambda x: x * x.shape[0], "only the last dim"),
    "rms_eps": (lambda x: F.rms_norm(x, x.shape[-1:]), "write eps=1e-6"),
    "norm_dims": (lambda x: F.layer_norm(x, (3, 4)), "x.shape[-1:]"),
    "norm_order": (lambda x: x / x.norm(p=3, dim=-1, keepdim=True), "order 1, 2"),
    "approximate": (lambda x: F.gelu(x, approximate="fast"), "'fast'"),
    "rounding": (lambda x: torch.div(x, 3, rounding_mode="floor"), "rounding_mode='floor'"),
    "floordiv": (lambda x: x // 2, "floordiv is not supported"),
    "bad_argument": (lambda x: x.to(torch.float32, copy=True), "to with these arguments"),
    "wrong_kind": (lambda x: torch.where(x, x, x), "a comparison is needed here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_where_and_what_to_do(name: str) -> None:
    function, expected = REFUSED[name]
    with pytest.raises(TraceError) as refused:
        program_of(function)
    message = str(refused.value)
    assert expected in message
    assert "\n" not in message
    assert "own-template.md" in message
    assert "ksearch.TemplateOp" in message


def test_refusals_name_the_users_line() -> None:
    line = _branch.__code__.co_firstlineno + 1
    with pytest.raises(TraceError, match=rf"^{Path(__file__)}:{line}: "):
        program_of(_branch)
    line = _outside.__code__.co_firstlineno + 1
    with pytest.raises(TraceError, match=rf"^{Path(__file__)}:{line}: "):
        program_of(_outside)

    def gives_a_row(x: Any, weight: Any) -> Any:
        return x * weight, weight

    line = gives_a_row.__code__.co_firstlineno
    with pytest.raises(TraceError, match=rf"^{Path(__file__)}:{line}: .* output 1 does not depend on any"):
        trace(gives_a_row, [Input("x"), Input("weight", Role.ROW)], {})

    def calls_another(x: Any) -> Any:
        y = x + 1
        return torch.fft.fft(y) + x

    line = calls_another.__code__.co_firstlineno + 2
    with pytest.raises(TraceError, match=rf"^{Path(__file__)}:{line}: "):
        program_of(calls_another)

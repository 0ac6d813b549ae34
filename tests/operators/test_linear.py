"""Ops that start with a linear: which tensors it takes, what follows it, shapes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch import operators
from ksearch.errors import BadShape, TraceError, UsageError
from ksearch.operators import Op
from ksearch.operators.cost import cost_of
from ksearch.operators.program import Node, Role, as_tuple
from ksearch.operators.signature import read_signature
from ksearch.types import Option
from tests.builtins_table import LINEAR_VARIANTS, label
from tests.operators.interpreter import evaluate_all, nasty

BATCHES = ((12,), (3, 4), (1,))


def make(function: Any, **roles: Any) -> Op:
    read = read_signature(function, roles)
    location = f"/nowhere/ops.py:{function.__name__}"
    return Op(function.__name__, function, read.inputs, read.options, location, choices=read.choices)


def nasty_operands(op: Op, options: dict[str, Option], batch: tuple[int, ...]) -> list[torch.Tensor]:
    """Inputs of float64 with NaN, inf and huge rows in the LEFT, for 24 features in and 10 out."""
    workload = op.workload((*batch, 24, 10), **options)
    generator = torch.Generator().manual_seed(1)
    shapes = op.input_shapes(workload.shape, options, workload.inner)
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    rows = tensors[0].view(-1, 24)
    rows.copy_(nasty()[: len(rows)])
    return tensors


def agrees(op: Op, batch: tuple[int, ...] = (12,), **options: Option) -> None:
    """The traced program computes what the function does, and the shapes are as the op says."""
    tensors = nasty_operands(op, options, batch)
    expected = as_tuple(op.reference(*tensors, **options))
    workload = op.workload((*batch, 24, 10), **options)
    assert [tuple(each.shape) for each in expected] == op.output_shapes(workload)
    results = evaluate_all(op.program(**options), *tensors)
    for result, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(result.reshape(exact.shape), exact, rtol=1e-11, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("variant", LINEAR_VARIANTS, ids=label)
def test_built_in_ops_agree_with_torch(
    variant: tuple[str, dict[str, Option]], batch: tuple[int, ...]
) -> None:
    agrees(operators.get(variant[0]), batch, **variant[1])


def test_the_named_layers_are_those_of_kernelbench() -> None:
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    layer = torch.nn.Linear(7, 3)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        y = layer(x)
        residual = torch.sigmoid(y) * 2.0 + y
        total = torch.sum(torch.sigmoid(y), dim=1, keepdim=True)
    named = [operators.get(name) for name in ("linear_sigmoid_scale_residual", "linear_sigmoid_sum")]
    for op, exact in zip(named, (residual, total), strict=True):
        torch.testing.assert_close(op.reference(x, weight, bias), exact, rtol=0, atol=0)


def residual_of_another(x: Any, w: Any, b: Any, res: Any, gain: Any) -> Any:
    return F.linear(x, w, b).tanh() * gain + res


def with_t(x: Any, weight: Any) -> Any:
    return (x @ weight.t()).relu()


def with_attribute(x: Any, weight: Any) -> Any:
    return torch.matmul(x, weight.T).abs()


def with_mt(x: Any, weight: Any) -> Any:
    return x.matmul(weight.mT) * 2


def with_transpose(x: Any, weight: Any) -> Any:
    return x @ weight.transpose(-2, -1) + 1


def by_keyword(x: Any, w: Any, bias: Any) -> Any:
    return torch.nn.functional.linear(bias=bias, weight=w, input=x.contiguous()).to(x.dtype)


def mean_of_rows(x: Any, weight: Any) -> Any:
    return F.linear(x, weight).mean(dim=-1)


def highest(x: Any, weight: Any, bias: Any) -> Any:
    return F.linear(x, weight, bias).max(dim=-1).values * 2.0 + 1.0


def lowest(x: Any, weight: Any, c: Any) -> Any:
    return F.linear(x, weight).amin(dim=-1, keepdim=True) + c


def log_sum(x: Any, weight: Any, bias: Any = None) -> Any:
    return torch.logsumexp(F.linear(x, weight, bias), -1)


def spread(x: Any, weight: Any) -> Any:
    return F.linear(x, weight).std(-1) + F.linear(x, weight).var(-1)


def length(x: Any, weight: Any) -> Any:
    return F.linear(x, weight).norm(dim=-1).exp2().neg()


def dropped(x: Any, weight: Any) -> Any:
    return torch.squeeze(F.linear(x, weight).sum(-1, keepdim=True), -1)


def put_back(x: Any, weight: Any) -> Any:
    y = F.linear(x, weight)
    return y - y.amax(-1).unsqueeze(-1)


def normalized(x: Any, weight: Any, gamma: Any, beta: Any) -> Any:
    y = F.linear(x, weight)
    return F.layer_norm(y, y.shape[-1:], gamma, beta)


def by_features_out(x: Any, weight: Any, c: Any) -> Any:
    y = F.linear(x, weight)
    return y.sum(-1) / y.shape[-1] + c.squeeze(-1)


def of_both_kinds(x: Any, weight: Any) -> Any:
    y = F.linear(x, weight)
    return y.softmax(-1), y.sum(-1)


FORMS: list[tuple[Callable[..., Any], dict[str, str]]] = [
    (residual_of_another, {"gain": "column"}),
    (with_t, {}),
    (with_attribute, {}),
    (with_mt, {}),
    (with_transpose, {}),
    (by_keyword, {}),
    (mean_of_rows, {}),
    (highest, {}),
    (lowest, {"c": "column"}),
    (log_sum, {}),
    (spread, {}),
    (length, {}),
    (dropped, {}),
    (put_back, {}),
    (normalized, {}),
    (by_features_out, {"c": "column"}),
    (of_both_kinds, {}),
]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0].__name__)
def test_functions_of_ones_own_need_no_roles(
    form: tuple[Callable[..., Any], dict[str, str]], batch: tuple[int, ...]
) -> None:
    function, roles = form
    op = make(function, **roles)
    assert op.program().inputs[0].role is Role.LEFT
    assert op.program().inputs[1].role is Role.RIGHT
    agrees(op, batch)


@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (2.0, 0.5)])
def test_addmm_takes_a_bias_or_a_full_tensor(beta: float, alpha: float) -> None:
    def layer(x: Any, weight: Any, bias: Any, c: Any) -> Any:
        y = torch.addmm(bias, x, weight.t(), beta=beta, alpha=alpha)
        return y + c

    def adds(x: Any, weight: Any, c: Any) -> Any:
        return torch.addmm(c, x, weight.t(), beta=beta, alpha=alpha).sigmoid()

    agrees(make(layer))
    agrees(make(adds))
    with pytest.raises(BadShape, match="adds does not run on shape 3x4x24x10: "):
        make(adds).workload((3, 4, 24, 10))


def test_the_bias_of_a_linear_is_a_row_whatever_its_name() -> None:
    roles = {item.name: item.role for item in make(residual_of_another, gain="column").inputs_for({})}
    assert roles == {
        "x": Role.LEFT, "w": Role.RIGHT, "b": Role.ROW, "res": Role.FULL, "gain": Role.COLUMN,
    }  # fmt: skip
    declared = make(residual_of_another, x="left", w="right", b="row", gain="column")
    assert declared.program() == make(residual_of_another, gain="column").program()
    assert [item.role for item in declared.inputs] == list(roles.values())


def test_the_roles_that_are_shown_are_those_that_the_function_tells() -> None:
    op = make(log_sum)
    assert [op.roles(item) for item in op.inputs] == [("left",), ("right",), ("row", "none")]
    assert op.inputs_for({"bias": "none"}) == op.program(bias="none").inputs
    assert len(op.inputs_for({"bias": "none"})) == 2


def test_a_workload_is_what_the_linear_gives_and_the_features_it_sums() -> None:
    op = make(residual_of_another, gain="column")
    workload = op.workload((2, 3, 16, 8), "bfloat16")
    assert (workload.shape, workload.inner, workload.dims) == ((2, 3, 8), 16, (2, 3, 16, 8))
    assert (workload.rows, workload.cols, workload.shape_text) == (6, 8, "2x3x16x8")
    assert str(workload) == "residual_of_another 2x3x16x8 bfloat16"
    shapes = op.input_shapes(workload.shape, {}, workload.inner)
    assert shapes == [(2, 3, 16), (8, 16), (8,), (2, 3, 8), (2, 3, 1)]
    assert op.accepted_shapes(workload.shape, {}, workload.inner) == [[shape] for shape in shapes]
    assert op.output_shapes(workload) == [(2, 3, 8)]
    assert workload.key != op.workload((2, 3, 32, 8), "bfloat16").key
    for dims in ((4, 8), (8,)):
        with pytest.raises(BadShape, match=r"too short: residual_of_another .* takes BATCHxINxOUT"):
            op.workload(dims)


def test_outputs_of_one_value_a_row_have_the_functions_own_shape() -> None:
    kept, lost, both = make(lowest, c="column"), make(highest), make(of_both_kinds)
    assert kept.output_shapes(kept.workload((2, 3, 16, 8))) == [(2, 3, 1)]
    assert lost.output_shapes(lost.workload((2, 3, 16, 8))) == [(2, 3)]
    assert both.output_shapes(both.workload((6, 16, 8))) == [(6, 8), (6,)]
    assert both.program().per_row == (False, True)
    softmax = operators.get("softmax")
    assert softmax.output_shapes(softmax.workload((4, 8))) == [(4, 8)]


def test_the_least_that_a_kernel_does_counts_operands_and_products() -> None:
    op = operators.get("linear_sigmoid_sum")
    workload = op.workload((4, 16, 8), "float16")
    cost = cost_of(op.program(), workload)
    assert cost.bytes == 2 * (4 * 16 + 8 * 16 + 8 + 4)
    assert cost.operations == 4 * 8 * (2 * 16 + 3)


def test_what_follows_the_linear_is_a_program_of_its_own() -> None:
    program = operators.get("linear_sigmoid_scale_residual").program()
    assert program.linear == Node("linear", ("x", "weight"))
    after = program.epilogue
    assert [(item.name, item.role) for item in after.inputs] == [("acc", Role.FULL), ("bias", Role.ROW)]
    acc, bias = torch.randn(4, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    (result,) = evaluate_all(after, acc, bias)
    torch.testing.assert_close(result, (acc + bias).sigmoid() * 2 + acc + bias)


def test_the_policy_is_part_of_the_workload() -> None:
    op = operators.get("linear")
    strict, tf32 = op.workload((4, 16, 8)), op.workload((4, 16, 8), policy="tf32")
    assert (strict.policy, tf32.policy) == ("strict", "tf32")
    assert strict.key != tf32.key
    assert str(tf32) == "linear 4x16x8 float32 tf32 bias=row"
    with pytest.raises(UsageError, match="there is no policy 'fast'; known: strict, tf32"):
        op.workload((4, 16, 8), policy="fast")
    with pytest.raises(UsageError, match="'tf32' is for linear layers in float32, and this is float16"):
        op.workload((4, 16, 8), "float16", policy="tf32")
    with pytest.raises(UsageError, match="for linear layers in float32, and softmax has none"):
        operators.get("softmax").workload((4, 8), policy="tf32")


# What is refused, and by which words

REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "not_transposed": (lambda x, w: x @ w, "matmul: the weight must be as torch.nn.Linear keeps it"),
    "computed_left": (lambda x, w: F.linear(x + 1, w), "operands must be tensors of the op as they are"),
    "computed_right": (lambda x, w: F.linear(x, w * 2), "operands must be tensors of the op as they are"),
    "two": (lambda x, w, v: F.linear(x, w) + F.linear(x, v), "only one linear is supported"),
    "two_in_a_row": (lambda x, w, v: F.linear(F.linear(x, w), v), "operands must be tensors of the op"),
    "left_again": (lambda x, w: F.linear(x, w) + x, "'x' is what a linear takes, and used elsewhere"),
    "right_again": (lambda x, w: F.linear(x, w) * w, "'w' is what a linear takes, and used elsewhere"),
    "bias_is_weight": (lambda x, w: F.linear(x, w, w), "'w' is what a linear takes, and used elsewhere"),
    "bias_is_left": (lambda x, w: F.linear(x, w, x), "'x' is what a linear takes, and used elsewhere"),
    "itself": (lambda x: F.linear(x, x), "first tensor, 'x', and another one as its weight"),
    "weight_first": (lambda w, x: F.linear(x, w), "it must take the op's first tensor, 'w'"),
    "not_the_first": (lambda r, x, w: F.linear(x, w) + r, "it must take the op's first tensor, 'r'"),
    "transposed_weight": (lambda x, w: F.linear(x, w.t()), "linear: a tensor is needed here, not a transp"),
    "transposed_left": (lambda x, w: x.t() @ w.t(), "a tensor is needed here, not a transposed tensor"),
    "transposed_alone": (lambda x, w: x * w.t(), "a tensor or a number is needed here, not a transposed"),
    "transposed_rows": (lambda x, w: x @ w.transpose(0, 2), "only a weight can be transposed"),
    "captured": (lambda x, w: F.linear(x, torch.ones(3, 3)), "make it an input"),
    "taken_name": (lambda x, acc: F.linear(x, acc) + 1, "'acc' is kept for what the linear gives: rename it"),
    "einsum": (lambda x, w: torch.einsum("bk,nk->bn", x, w), "einsum is not supported"),
    "flat_meets_full": (
        lambda x, w: F.linear(x, w) - F.linear(x, w).sum(-1), "a row without the reduced dim meets a tensor",
    ),
    "flat_meets_input": (
        lambda x, w, c: F.linear(x, w).sum(-1) + c, "a row without the reduced dim meets a tensor",
    ),
    "flat_meets_row": (
        lambda x, w: F.linear(x, w).sum(-1) * F.linear(x, w).sum(-1, keepdim=True), "write keepdim=True",
    ),
    "flat_reduced": (lambda x, w: F.linear(x, w).sum(-1).sum(-1), "nothing left to reduce"),
    "flat_squeezed": (lambda x, w: F.linear(x, w).sum(-1).squeeze(-1), "only a reduced dim can be dropped"),
    "full_squeezed": (lambda x, w: F.linear(x, w).squeeze(-1), "only a reduced dim can be dropped"),
    "full_unsqueezed": (lambda x, w: F.linear(x, w).unsqueeze(-1), "only a reduced dim can be put back"),
    "features_in": (lambda x, w: F.linear(x, w) / x.shape[-1], "the shape of what a linear takes is"),
    "features_of_weight": (lambda x, w: F.linear(x, w) * w.size(-1), "the shape of what a linear takes is"),
    "over_rows": (lambda x, w: F.linear(x, w).sum(0), "counted from the last"),
    "total": (lambda x, w: F.linear(x, w).sum(-1).sum(), "a sum over all rows after a linear"),
    "constant": (lambda x, w: torch.zeros_like(F.linear(x, w)), "the same for every element"),
    "no_row": (lambda x, w, bias: (F.linear(x, w), bias * 2), "output 1 does not depend on any input"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_where_and_what_to_do(name: str) -> None:
    function, expected = REFUSED[name]
    op = make(function)
    with pytest.raises(TraceError) as refused:
        op.program()
    message = str(refused.value)
    assert expected in message
    assert message.startswith(f"{Path(__file__)}:")
    assert "own-template.md" in message
    assert "\n" not in message


def test_roles_that_are_stated_must_be_those_of_the_function() -> None:
    def plain(x: Any, w: Any) -> Any:
        return x * 2

    def layer(x: Any, w: Any, v: Any) -> Any:
        return F.linear(x, w) if v is not None else x

    with pytest.raises(TraceError, match="'x' has the role 'left', and there is no linear"):
        make(plain, x="left", w="right").program()
    with pytest.raises(TraceError, match="'v' has the role 'right', and the result needs no linear of it"):
        make(layer, x="left", v="right").program()
    with pytest.raises(TraceError, match="'w' is stated as 'column', and here it is 'right'"):
        make(layer, w="column").program()


def test_an_operand_is_always_there() -> None:
    def either(x: Any, weight: Any = None) -> Any:
        return x if weight is None else F.linear(x, weight)

    op = make(either)
    assert op.program(weight="none").linear is None
    with pytest.raises(TraceError, match="either: 'weight' is what a linear takes: it can have no choice"):
        op.program()


def test_an_optional_bias_of_another_name_must_say_that_it_is_a_row() -> None:
    def layer(x: Any, w: Any, b: Any = None) -> Any:
        return F.linear(x, w, b)

    with pytest.raises(TraceError, match=r"'b' is the 'row' of a linear: .* @op\(b=\('row', 'none'\)\)"):
        make(layer).program()
    op = make(layer, b=("row", "none"))
    agrees(op)
    agrees(op, b="none")


# ---- the bias ----------------------------------------------------------------------------------------


def plain(x: Any, weight: Any, bias: Any) -> Any:
    return F.linear(x, weight, bias).relu()


def by_hand(x: Any, weight: Any, bias: Any) -> Any:
    return (bias + x @ weight.t()).relu()


def bias_twice(x: Any, weight: Any, bias: Any) -> Any:
    return F.linear(x, weight, bias).relu() + bias


def product_twice(x: Any, weight: Any, bias: Any) -> Any:
    product = x @ weight.t()
    return (product + bias).relu() * product


def scaled_first(x: Any, weight: Any, bias: Any) -> Any:
    return x @ weight.t() * 2.0 + bias


def doubled(x: Any, weight: Any) -> Any:
    product = x @ weight.t()
    return product + product


def plus_a_number(x: Any, weight: Any) -> Any:
    return x @ weight.t() + 1.0


OPERANDS: dict[str, str] = {"x": "left", "weight": "right"}


@pytest.mark.parametrize(
    ("function", "role", "name"),
    [
        (plain, "row", "bias"),
        (by_hand, "row", "bias"),
        (by_hand, "column", None),
        (by_hand, "full", None),
        (by_hand, "scalar", None),
        (bias_twice, "row", None),
        (product_twice, "row", None),
        (scaled_first, "row", None),
        (doubled, None, None),
        (plus_a_number, None, None),
    ],
)
def test_a_bias_is_what_is_added_to_the_product_and_used_nowhere_else(
    function: Callable[..., Any], role: str | None, name: str | None
) -> None:
    program = make(function, **OPERANDS, **({"bias": role} if role else {})).program()
    assert (program.bias.name if program.bias else None) == name
    if name is None:
        with pytest.raises(ValueError, match="no bias"):
            _ = program.after_bias


def test_what_follows_a_bias_is_the_epilogue_without_it() -> None:
    op = operators.get("linear_sigmoid_scale_residual")
    rest = op.program(**dict(op.workload((2, 24, 10)).options)).after_bias
    assert [item.name for item in rest.inputs] == ["acc"]
    assert [node.op for node in rest.nodes] == ["input", "sigmoid", "const", "*", "+"]
    summed = torch.randn(4, 10, dtype=torch.float64)
    (found,) = evaluate_all(rest, summed)
    torch.testing.assert_close(found, summed.sigmoid() * 2.0 + summed)
    (same,) = evaluate_all(operators.get("linear").program().after_bias, summed)
    assert torch.equal(same, summed)

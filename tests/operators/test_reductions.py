"""What is traced of reductions: the dims of a row, sums over the rows, indices; how calls are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch import operators
from ksearch.errors import BadShape, TraceError, UsageError
from ksearch.operators.cost import cost_of
from ksearch.operators.program import Input, Program, Role
from ksearch.operators.roles import reduced, shapes_of
from ksearch.operators.stages import Kind
from ksearch.operators.trace import trace
from ksearch.runtime.reading import Reader
from tests.operators.interpreter import evaluate


def program_of(function: Callable[..., Any], *inputs: str) -> Program:
    return trace(function, [Input(name) for name in inputs or ("x",)], {})


@pytest.mark.parametrize(
    ("function", "over", "family"),
    [
        (lambda x: x.sum(-1), (-1,), "reduction"),
        (lambda x: x.sum(dim=(-1, -2)), (-2, -1), "reduction"),
        (lambda x: x.sum(), (), "reduction"),
        (lambda x: x.amax(), (), "reduction"),
        (torch.max, (), "reduction"),
        (lambda x: x / x.norm(), (), "rowwise"),
        (lambda x: x - x.mean(dim=(-2, -1), keepdim=True), (-2, -1), "rowwise"),
        (lambda x: x.sigmoid(), (-1,), "pointwise"),
    ],
)
def test_the_dims_of_a_row_are_those_that_are_reduced(
    function: Callable[..., Any], over: tuple[int, ...], family: str
) -> None:
    program = program_of(function)
    assert (program.over, program.family) == (over, family)


def test_over_the_last_dim_the_digest_is_as_it_was() -> None:
    """A winner that was kept before rows could be of several dims is still found."""
    assert operators.get("softmax").workload((4, 8)).layout == "contiguous"
    one, other = program_of(lambda x: x.sum(-1)), program_of(lambda x: x.sum())
    assert one.nodes == other.nodes
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("options", "layout", "rows", "cols", "shape"),
    [
        ({"dim": "-1"}, "contiguous", 6, 5, (2, 3)),
        ({"dim": "-1", "keepdim": True}, "contiguous", 6, 5, (2, 3, 1)),
        ({"dim": "-2,-1"}, "over -2,-1", 2, 15, (2,)),
        ({"dim": "-2,-1", "keepdim": True}, "over -2,-1", 2, 15, (2, 1, 1)),
        ({}, "over all", 1, 30, ()),
        ({"keepdim": True}, "over all", 1, 30, (1, 1, 1)),
    ],
)
def test_a_workload_knows_what_its_rows_are(
    options: dict[str, Any], layout: str, rows: int, cols: int, shape: tuple[int, ...]
) -> None:
    op = operators.get("amax")
    workload = op.workload((2, 3, 5), **options)
    assert (workload.layout, workload.rows, workload.cols) == (layout, rows, cols)
    assert op.output_shapes(workload) == [shape]
    assert cost_of(op.program(**dict(workload.options)), workload).bytes == 4 * (30 + rows)


def test_too_few_dims_are_refused() -> None:
    with pytest.raises(BadShape, match="sum does not run on shape 5"):
        operators.get("sum").workload((5,), dim="-2,-1")
    with pytest.raises(TraceError, match="over one dim or all, not over -2,-1"):
        operators.get("argmax").workload((4, 5), dim="-2,-1")
    with pytest.raises(TraceError, match="over dims that are named"):
        operators.get("logsumexp").workload((4, 5), dim="all")


def test_a_value_of_each_row_may_be_summed_over_all_rows() -> None:
    program = program_of(lambda x: x.amax(-1).mean())
    assert program.output_roles == (Role.SCALAR,)
    assert program.is_total
    schedule = program.schedule()
    assert schedule.totals == ("r1",)
    assert "value[0] = row.r0;" in schedule.text, "what a row adds"
    assert "row.r1 / row._rows" in schedule.text
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(evaluate(program, x), x.amax(-1).mean())
    of_all = program_of(lambda x: F.log_softmax(x, -1).sum())
    torch.testing.assert_close(evaluate(of_all, x), F.log_softmax(x, -1).sum())


def test_a_tensor_of_one_element_broadcasts_along_all() -> None:
    x = torch.randn(7, 5, dtype=torch.float64)
    program = program_of(lambda x: x * 2 / x.abs().sum() + x.mean())
    result = evaluate(program, x)
    torch.testing.assert_close(result.reshape(7, 5), x * 2 / x.abs().sum() + x.mean())


def test_both_the_maximum_and_its_index_may_be_returned() -> None:
    def function(x: Any) -> Any:
        found = x.max(-1)
        return found[0], found.indices

    with pytest.raises(TraceError, match="attribute 'indices'"):
        program_of(function)
    program = program_of(lambda x: (x.max(-1)[0], x.max(-1)[1]))
    assert program.output_dtypes("bfloat16") == ("bfloat16", "int64")
    assert [r.kind for r in program.schedule().stages[0].reductions] == [Kind.MAX, Kind.ARGMAX]
    assert program.schedule().places == ("", "r1")


def test_the_target_of_a_cross_entropy_is_an_index() -> None:
    program = program_of(lambda x, y: F.cross_entropy(x, y, ignore_index=3), "x", "y")
    assert program.inputs == (Input("x"), Input("y", Role.INDEX))
    assert (program.index, program.marks("y")) == ("y", (3,))
    assert program.inputs[1].dtype("float16") == "int64"
    assert operators.get("cross_entropy").program().marks("target") == (-100,)
    schedule = program.schedule(program.online_kinds)
    assert len(schedule.stages) == 1, "one read of the logits"
    assert [(pick.index, schedule.pick_inputs) for pick in schedule.picks] == [("y", ("x",))]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x, y: F.cross_entropy(x, y, reduction="none") + y,
            "an index can only be compared with a number",
        ),
        (lambda x, y: F.cross_entropy(x, y, ignore_index=1 << 24), "choose a number below 2^24"),
        (lambda x, y: F.cross_entropy(x, y + 1), "the target must be a tensor of the op"),
        (lambda x, y: F.cross_entropy(x, y, weight=x), "weight"),
        (lambda x, y: F.cross_entropy(F.softmax(x, -1), y), "needs no reduction"),
    ],
)
def test_what_cannot_be_done_with_an_index_is_told(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TraceError) as refused:
        program_of(function, "x", "y")
    assert message in str(refused.value)


def test_an_index_is_for_what_reduces_its_rows() -> None:
    from ksearch import families
    from ksearch.operators.registry import op

    @op(name="test_only_masked", y="index")
    def masked(x: Any, y: Any) -> Any:
        return torch.where((y == 0).unsqueeze(-1), 0.0, x)

    with pytest.raises((UsageError, TraceError)):
        families.find(operators.get("test_only_masked"), "cpu")


@pytest.mark.parametrize(
    ("call", "options"),
    [
        (((),), {"dim": "all", "keepdim": False}),
        ((-1,), {"dim": "-1", "keepdim": False}),
        ((2,), {"dim": "-1", "keepdim": False}),
        (((1, 2), True), {"dim": "-2,-1", "keepdim": True}),
        (((0, 1, 2),), {"dim": "all", "keepdim": False}),
    ],
)
def test_calls_in_pytorchs_form_are_read(call: tuple[Any, ...], options: dict[str, Any]) -> None:
    reading = Reader(operators.get("sum")).read((torch.zeros(2, 3, 5), *call), {})
    assert (reading.reason, reading.options) == ("", options)


@pytest.mark.parametrize(
    ("name", "args", "named", "reason"),
    [
        ("sum", (), {"dtype": torch.float64}, "dtype=torch.float64 is not that of the input"),
        ("sum", (3,), {}, "dim=3 does not name dims of 3"),
        ("prod", (), {"dim": None, "keepdim": True}, "keeps dims only where it is told one"),
        ("mse_loss", (torch.zeros(2, 3, 5), True), {}, "size_average"),
        ("triplet_margin_loss", (torch.zeros(2, 3, 5),) * 2, {"p": 1.0}, "kernels for p=2"),
    ],
)
def test_calls_that_only_pytorch_can_answer_are_known(
    name: str, args: tuple[Any, ...], named: dict[str, Any], reason: str
) -> None:
    reading = Reader(operators.get(name)).read((torch.zeros(2, 3, 5), *args), named)
    assert reason in reading.reason


def test_shapes_follow_the_dims_of_a_row() -> None:
    assert reduced((2, 3, 5), (-2, -1), keepdim=True) == (2, 1, 1)
    assert reduced((2, 3, 5), (), keepdim=False) == ()
    assert shapes_of(Role.INDEX, (2, 3, 5)) == [(2, 3)]
    assert shapes_of(Role.COLUMN, (2, 3, 5), 0, (-2, -1)) == [(2, 1, 1)]
    assert shapes_of(Role.ROW, (2, 3, 5), 0, (-2, -1)) == [(3, 5), (1, 3, 5)]
    assert shapes_of(Role.ROW, (2, 3, 5), 0, (-2,)) == [(3, 1), (1, 3, 1)]
    assert shapes_of(Role.ROW, (2, 3, 5)) == [(5,), (1, 5), (1, 1, 5)]

"""Cost, and what a Program says about itself."""

from __future__ import annotations

from typing import Any

from ksearch.operators.cost import Cost, cost_of
from ksearch.operators.program import Input, Node, Program, Role
from ksearch.operators.trace import trace
from ksearch.types import Workload


def _softmax(x: Any) -> Any:
    return x.softmax(dim=-1)


def test_cost_counts_each_tensor_once() -> None:
    program = trace(_softmax, [Input("x")], {})
    cost = cost_of(program, Workload("softmax", (4, 100)))
    assert cost.bytes == 2 * 400 * 4
    assert cost.operations == 5 * 400  # max, subtract, exp, sum, times the row's reciprocal


def test_cost_knows_roles_dtype_and_unused_inputs() -> None:
    inputs = [Input("x"), Input("weight", Role.ROW), Input("scale", Role.COLUMN), Input("unused")]
    program = trace(lambda x, weight, scale, unused: x * weight + scale, inputs, {})
    cost = cost_of(program, Workload("f", (3, 5, 10), "bfloat16"))
    assert cost == Cost(bytes=2 * (150 + 10 + 15 + 150), operations=2 * 150)


def test_cost_counts_every_output() -> None:
    program = trace(lambda x, y: (x + y, x, x * y), [Input("x"), Input("y")], {})
    assert cost_of(program, Workload("f", (4, 100), "float16")) == Cost(bytes=5 * 400 * 2, operations=2 * 400)
    assert program.output_names == ("out0", "out1", "out2")


def test_values_per_row_are_told_from_values_per_column() -> None:
    inputs = [Input("x"), Input("scale", Role.COLUMN)]
    program = trace(lambda x, scale: x * (scale + x.amax(-1, keepdim=True)), inputs, {})
    by_op = {node.op: wide for node, wide in zip(program.nodes, program.elementwise, strict=True)}
    assert by_op == {"input": False, "reduce_max": False, "+": False, "*": True}


def test_family() -> None:
    assert trace(_softmax, [Input("x")], {}).family == "rowwise"
    assert trace(lambda x: x + 1, [Input("x")], {}).family == "pointwise"


def test_digest_covers_names_roles_nodes_and_outputs() -> None:
    nodes = (Node("input", ("x",)), Node("exp", (0,)))
    programs = [
        Program((Input("x"),), nodes, (1,)),
        Program((Input("y"),), nodes, (1,)),
        Program((Input("x", Role.ROW),), nodes, (1,)),
        Program((Input("x"),), nodes, (0,)),
        Program((Input("x"),), (nodes[0], Node("exp2", (0,))), (1,)),
    ]
    assert len({program.digest for program in programs}) == len(programs)

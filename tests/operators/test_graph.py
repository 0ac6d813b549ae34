"""Simplifications must keep every bit, so what is *not* simplified matters as much."""

from __future__ import annotations

import math

import pytest

from ksearch.errors import TraceError
from ksearch.operators.graph import Graph
from ksearch.operators.program import Input, Role
from ksearch.operators.values import apply, compare


@pytest.fixture
def graph() -> Graph:
    return Graph([Input("x"), Input("weight", Role.ROW), Input("scale", Role.COLUMN)])


def test_division_by_a_power_of_two_is_a_product(graph: Graph) -> None:
    x = graph.input(graph.inputs[0])
    quotient = graph.nodes[(x / -8).index]
    assert (quotient.op, graph.nodes[int(quotient.args[1])].args) == ("*", (-0.125,))
    assert graph.nodes[(x / 3).index].op == "/"
    assert graph.nodes[(x / 0).index].op == "/"
    assert graph.nodes[(x / math.inf).index].op == "/"
    assert graph.nodes[(x / 2.0**-140).index].op == "/"  # its inverse is no float


def test_zero_is_neither_added_nor_multiplied_away(graph: Graph) -> None:
    x = graph.input(graph.inputs[0])
    assert graph.nodes[(x + 0.0).index].op == "+"  # -0.0 + 0.0 is 0.0
    assert graph.nodes[(x * 0.0).index].op == "*"  # inf * 0.0 is NaN
    assert (1 * x).index == x.index


def test_order_is_kept_where_it_matters(graph: Graph) -> None:
    x, y = graph.input(graph.inputs[0]), graph.input(graph.inputs[1])
    assert (x + y).index == (y + x).index
    assert (x - y).index != (y - x).index
    assert apply("max", x, y).index == apply("max", y, x).index


def test_folding_means_what_torch_means(graph: Graph) -> None:
    zero = graph.const(0.0)
    assert graph.nodes[(1.0 / zero).index].args == (math.inf,)
    assert graph.nodes[apply("log", zero).index].args == (-math.inf,)
    assert graph.nodes[compare("<", zero, 1.0).select(5.0, 6.0).index].args == (5.0,)
    assert graph.nodes[apply("round", graph.const(2.5)).index].args == (2.0,)


def test_spread_follows_the_roles(graph: Graph) -> None:
    x, weight, scale = map(graph.input, graph.inputs)
    assert (weight.has_rows, weight.has_cols) == (False, True)
    assert (scale.has_rows, scale.has_cols) == (True, False)
    both = weight * scale
    assert (both.has_rows, both.has_cols) == (True, True)
    total = graph.reduce("sum", x)
    assert (total.has_rows, total.has_cols) == (True, False)
    with pytest.raises(TraceError, match="nothing left"):
        graph.reduce("sum", total)


def test_what_is_no_number_is_refused(graph: Graph) -> None:
    x = graph.input(graph.inputs[0])
    with pytest.raises(TraceError, match="not a comparison"):
        apply("+", x, compare(">", x, 0.0))  # type: ignore[arg-type]

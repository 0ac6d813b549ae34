"""The values of a program while it is being written down, with Python's own arithmetic signs.

Equal expressions become one value and constants are folded as they are made, so a Program never holds
two nodes that compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from ksearch.errors import TraceError
from ksearch.operators.program import Input, Node, Program, Role
from ksearch.operators.schedule import softmax_max

_COMMUTATIVE = ("+", "*", "==", "!=", "max", "min")

_FOLD: dict[str, Callable[..., torch.Tensor]] = {
    "+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div, "neg": torch.neg,
    "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne,
    "max": torch.maximum, "min": torch.minimum, "pow": torch.pow, "abs": torch.abs,
    "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "log": torch.log, "log1p": torch.log1p,
    "log2": torch.log2, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "erf": torch.erf, "sin": torch.sin, "cos": torch.cos,
    "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
}  # fmt: skip
"""Every node that can be folded, and what it means: PyTorch itself, in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One value of a graph: a tensor, or a number known only as a constant or the row length."""

    graph: Graph
    index: int
    is_flat: bool = False
    """One value a row that has lost the dim of the columns: `sum(dim=-1)` without keepdim."""

    @property
    def has_rows(self) -> bool:
        return self.graph.spread[self.index][0]

    @property
    def has_cols(self) -> bool:
        return self.graph.spread[self.index][1]

    def __add__(self, other: Number) -> Value:
        return self.graph.apply("+", self, other)

    def __radd__(self, other: Number) -> Value:
        return self.graph.apply("+", other, self)

    def __sub__(self, other: Number) -> Value:
        return self.graph.apply("-", self, other)

    def __rsub__(self, other: Number) -> Value:
        return self.graph.apply("-", other, self)

    def __mul__(self, other: Number) -> Value:
        return self.graph.apply("*", self, other)

    def __rmul__(self, other: Number) -> Value:
        return self.graph.apply("*", other, self)

    def __truediv__(self, other: Number) -> Value:
        return self.graph.apply("/", self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return self.graph.apply("/", other, self)

    def __neg__(self) -> Value:
        return self.graph.apply("neg", self)


Number: TypeAlias = Value | float


@dataclass(frozen=True, slots=True)
class Mask:
    """The truth of a comparison, known by what it selects: `select(a, b)` is a where it holds, else b."""

    select: Callable[[Number, Number], Value]

    def __and__(self, other: Mask) -> Mask:
        return Mask(lambda a, b: self.select(other.select(a, b), b))

    def __or__(self, other: Mask) -> Mask:
        return Mask(lambda a, b: self.select(a, other.select(a, b)))

    def __invert__(self) -> Mask:
        return Mask(lambda a, b: self.select(b, a))


@dataclass(frozen=True, slots=True)
class Transposed:
    """A tensor of two dims with these swapped, as a linear that is written as a product takes its weight."""

    tensor: Value


class Graph:
    """Nodes in order of definition, none of them twice."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = tuple(inputs)
        self.inferred: dict[str, Role] = {}
        """Inputs that a linear takes in another role than theirs: the graph must be written again with it."""
        self.nodes: list[Node] = []
        self.spread: list[tuple[bool, bool]] = []
        """For each node, whether it differs from row to row, and from column to column."""
        self._seen: dict[object, int] = {}

    def input(self, item: Input) -> Value:
        spread = (item.role in (Role.FULL, Role.COLUMN), not item.role.by_row)
        return self._node("input", (item.name,), spread)

    def const(self, value: float) -> Value:
        if value == 0 and math.copysign(1.0, value) < 0:
            # As the negative of 0.0, which it equals: programs that differ in it alone must not be equal.
            return self._node("neg", (self.const(0.0).index,), (False, False))
        return self._node("const", (float(value),), (False, False))

    def cols(self) -> Value:
        """The row length, a number that is known once the shape is."""
        return self._node("cols", (), (False, False))

    def apply(self, op: str, *args: Number) -> Value:
        """`op` of `args`, simplified only where the result stays the same to the last bit.

        Raises TraceError where PyTorch would broadcast a value that has lost a dim along another one.
        """
        values = [self._value(arg) for arg in args]
        flat = any(value.is_flat for value in values)
        if flat and any(not value.is_flat and not self._is_number(value) for value in values):
            raise TraceError("a value a row without the reduced dim meets a tensor: write keepdim=True")
        return replace(self._simplified(op, values), is_flat=flat)

    def _simplified(self, op: str, values: list[Value]) -> Value:
        if op == "/" and (simpler := self._divide(*values)) is not None:
            return simpler
        constants = [self._constant(value) for value in values]
        if op in _FOLD and all(constant is not None for constant in constants):
            folded = _FOLD[op](*(torch.tensor(constant, dtype=torch.float64) for constant in constants))
            return self.const(float(folded))
        if op == "*" and 1.0 in constants:
            return values[1 - constants.index(1.0)]
        if op == "where" and constants[0] is not None:
            return values[1] if constants[0] else values[2]
        spreads = [self.spread[value.index] for value in values]
        spread = (any(rows for rows, _ in spreads), any(cols for _, cols in spreads))
        return self._node(op, tuple(value.index for value in values), spread)

    def compare(self, sign: str, a: Number, b: Number) -> Mask:
        test = self.apply(sign, a, b)
        return Mask(lambda x, y: self.apply("where", test, x, y))

    def reduce(self, kind: str, value: Value) -> Value:
        """`sum`, `max` or `min` over the columns, kept as one. Raises TraceError where there are none."""
        if not value.has_cols:
            raise TraceError("the value to reduce has one column only, so there is nothing left to reduce")
        return self._node(f"reduce_{kind}", (value.index,), (value.has_rows, False))

    def linear(self, left: Value, right: Value) -> Value:
        """The sums of products of every row of `left` with every row of `right`, both inputs.

        Raises TraceError unless it is the only one, and `left` the first input.
        """
        first, operands = self.inputs[0].name, (self.input_name(left), self.input_name(right))
        if None in operands:
            raise TraceError("its operands must be tensors of the op as they are: compute them beforehand")
        if operands[0] != first or operands[1] == first:
            raise TraceError(f"it must take the op's first tensor, {first!r}, and another one as its weight")
        if any(node.op == "linear" and node.args != operands for node in self.nodes):
            raise TraceError("only one linear is supported")
        roles = {item.name: item.role for item in self.inputs}
        for name, role in zip(map(str, operands), (Role.LEFT, Role.RIGHT), strict=True):
            if roles[name] not in (role, Role.FULL, Role.ROW):
                raise TraceError(f"{name!r} is stated as {str(roles[name])!r}, and here it is {str(role)!r}")
            self.infer(name, role)
        return self._node("linear", tuple(map(str, operands)), (True, True))

    def is_operand(self, value: Value) -> bool:
        """Whether it is an input that a linear takes, which is not of rows x cols."""
        name = self.input_name(value)
        return any(item.name == name and item.role.is_operand for item in self.inputs)

    def input_name(self, value: Value) -> str | None:
        """What the input is called that `value` is; None where it is computed."""
        node = self.nodes[value.index]
        return str(node.args[0]) if node.op == "input" else None

    def infer(self, name: str, role: Role) -> None:
        """The input has that role, whatever it was taken for so far."""
        if Input(name, role) not in self.inputs:
            self.inferred[name] = role

    def program(self, outputs: Sequence[Value]) -> Program:
        """What `outputs` need, numbered in the order in which it is needed."""
        order: dict[int, int] = {}
        pending = [output.index for output in reversed(outputs)]
        while pending:
            missing = [i for i in self.nodes[pending[-1]].operands if i not in order]
            if missing:
                pending.append(missing[0])
            else:
                order.setdefault(pending.pop(), len(order))
        nodes = []
        for index in order:
            node = self.nodes[index]
            args = tuple(order[i] for i in node.operands) or node.args
            nodes.append(Node(node.op, args))
        return Program(self.inputs, tuple(nodes), tuple(order[output.index] for output in outputs))

    def _node(self, op: str, args: tuple[int | float | str, ...], spread: tuple[bool, bool]) -> Value:
        # repr, because nan != nan
        key = (op, tuple(sorted(map(repr, args))) if op in _COMMUTATIVE else tuple(map(repr, args)))
        if key not in self._seen:
            self._seen[key] = len(self.nodes)
            self.nodes.append(Node(op, args))
            self.spread.append(spread)
        return Value(self, self._seen[key])

    def _is_number(self, value: Value) -> bool:
        """Whether it is known without any tensor, those of one element included."""
        if value.has_rows or value.has_cols:
            return False
        node = self.nodes[value.index]
        return node.op != "input" and all(self._is_number(Value(self, i)) for i in node.operands)

    def _value(self, number: Number) -> Value:
        if isinstance(number, Value):
            return number
        if isinstance(number, int | float):
            return self.const(number)
        raise TraceError(f"a tensor or a number is needed here, not {describe(number)}")

    def _constant(self, value: Value) -> float | None:
        node = self.nodes[value.index]
        return float(node.args[0]) if node.op == "const" else None

    def _divide(self, a: Value, b: Value) -> Value | None:
        divisor = self._constant(b)
        if divisor is not None and divisor != 0 and math.isfinite(divisor):
            mantissa, exponent = math.frexp(divisor)
            if abs(mantissa) == 0.5 and abs(exponent) < 100:
                return self.apply("*", a, 1.0 / divisor)  # exact for a power of two
        if a.has_cols and not b.has_cols and softmax_max(self.nodes, b.index) is not None:
            # One division per row, not per element. Safe because this sum lies in [1, cols] (or is NaN);
            # of a denormal divisor the reciprocal would be inf.
            return self.apply("*", a, self.apply("/", 1.0, b))
        return None


def apply(op: str, *args: Number) -> Value:
    """`op` of `args`, of which at least one is a Value."""
    for arg in args:
        if isinstance(arg, Value):
            return arg.graph.apply(op, *args)
    raise TraceError(f"a tensor is needed here, not {', '.join(map(describe, args))}")


def compare(sign: str, a: Number, b: Number) -> Mask:
    """The truth of `a sign b`, of which at least one is a Value."""
    for arg in (a, b):
        if isinstance(arg, Value):
            return arg.graph.compare(sign, a, b)
    raise TraceError(f"a tensor is needed here, not {describe(a)}")


def describe(thing: object) -> str:
    """A word or two for a message: what a person would call it."""
    if isinstance(thing, Mask):
        return "a comparison (use it in torch.where, with & | ~, or make it a number with .float())"
    if isinstance(thing, Transposed):
        return "a transposed tensor"
    return repr(thing) if isinstance(thing, int | float | str | None) else f"a {type(thing).__name__}"

"""A program while it is being written down.

Equal expressions become one value and constants are folded as they are made, so a Program never holds
two nodes that compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ksearch.errors import TraceError
from ksearch.operators.program import Input, Node, Program, Role
from ksearch.operators.schedule import softmax_max
from ksearch.operators.values import Mask, Number, Value, describe

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


class Graph:
    """Nodes in order of definition, none of them twice."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = tuple(inputs)
        self.inferred: dict[str, Role] = {}
        """Inputs that a linear takes in another role than theirs: the graph must be written again with it."""
        self.nodes: list[Node] = []
        self.spread: list[tuple[bool, bool]] = []
        """For each node, whether it differs from row to row, and from column to column."""
        self.over: tuple[int, ...] | None = None
        """The dims that reductions are over; None before the first."""
        self.groups = 0
        """See `Program.groups`."""
        self._seen: dict[object, int] = {}
        self._totals: set[int] = set()
        """Nodes that are computed from a sum over all rows."""

    def input(self, item: Input) -> Value:
        has_rows = item.role in (Role.FULL, Role.COLUMN, Role.INDEX, Role.CHANNEL, Role.MASK)
        spread = (has_rows, not item.role.by_row)
        value = self._node("input", (item.name,), spread)
        return replace(value, is_flat=item.role is Role.INDEX)

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
        self._check_use(op, values)
        flat = any(value.is_flat for value in values)
        if flat and any(not value.is_flat and not self._is_number(value) for value in values):
            if self.over != ():  # a tensor without dims broadcasts along anything
                raise TraceError("a value a row without the reduced dim meets a tensor: write keepdim=True")
            flat = False
        orders = {value.is_reversed for value in values if value.has_cols}
        if len(orders) == 2:
            raise TraceError("a reversed tensor meets one that is not: flip both, or neither")
        return replace(self._simplified(op, values), is_flat=flat, is_reversed=True in orders)

    def _check_use(self, op: str, values: list[Value]) -> None:
        """Raises TraceError for an index that is computed with, and a sum over all rows that meets a row."""
        for value in values:
            node = self.nodes[value.index]
            if node.op in ("reduce_argmax", "reduce_argmin"):
                raise TraceError("the index of a maximum or minimum can only be returned")
            others = [other for other in values if other.index != value.index]
            if self.is_index(value) and (op not in ("==", "!=") or not all(map(self._is_number, others))):
                raise TraceError("an index can only be compared with a number")
            if self.is_total(value) and any(other.has_rows or other.has_cols for other in others):
                raise TraceError("a sum over all rows comes last: it cannot meet another value of a row")

    def is_total(self, value: Value) -> bool:
        """Whether it is computed from a sum over all rows."""
        return value.index in self._totals

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

    def reduce(self, kind: str, value: Value, over: tuple[int, ...] | None = None) -> Value:
        """Over the columns, kept as one; `kind` is one of Kind.

        `over`: the dims that they are, None for those of the other reductions. Raises TraceError where there
        are none, or the dims are others.
        """
        if not value.has_cols:
            raise TraceError("the value to reduce has one column only, so there is nothing left to reduce")
        if self.groups and over is not None:
            raise TraceError("it reduces over groups of channels, and another reduction over something else")
        self._goes_over(over if over is not None else self.over if self.over is not None else (-1,))
        return self._node(f"reduce_{kind}", (value.index,), (value.has_rows, False))

    def _goes_over(self, over: tuple[int, ...]) -> None:
        """Rows are of these dims. Raises TraceError where they are of others already."""
        if self.over not in (None, over):
            raise TraceError(
                f"it reduces over {_listed(over)}, and another reduction over {_listed(self.over or ())}: "
                "all of an op are over the same dims"
            )
        self.over = over

    @property
    def is_broadcast(self) -> bool:
        """Whether some input is the same along rows or columns, so that these must stay apart."""
        return any(item.role in (Role.ROW, Role.COLUMN, Role.INDEX) for item in self.inputs)

    def fold(self, value: Value) -> Value:
        """The sum of a row's value over all rows. Raises TraceError where it is no value of a row."""
        if value.has_cols or not value.has_rows or self.over == ():
            raise TraceError("the value to sum over all rows is not one a row")
        return replace(self._node("fold_sum", (value.index,), (False, False)), is_flat=True)

    def pick(self, value: Value, index: Value) -> Value:
        """`value` at the column that an INDEX input names. Raises TraceError where it needs a reduction."""
        needed = [value.index]
        for i in needed:
            needed.extend(self.nodes[i].operands)
        if any(self.nodes[i].op.startswith(("reduce_", "pick")) for i in needed) or not value.has_cols:
            raise TraceError("only what needs no reduction can be picked by an index")
        return self._node("pick", (value.index, index.index), (True, False))

    def group(self, count: int) -> None:
        """Rows are groups of channels. Raises TraceError where they are something else already."""
        if self.over is not None and self.groups != count:
            raise TraceError("it reduces over groups of channels, and another reduction over something else")
        self.groups, self.over = count, (-1,)

    def channel(self, value: Value) -> Value:
        """An input that has a value for each channel, if it is not known to be one yet.

        Raises TraceError where it is no input.
        """
        name = self.input_name(value)
        if name is None:
            raise TraceError("what has a value for each channel must be a tensor of the op as it is")
        self.infer(name, Role.CHANNEL)
        return value

    def last_dim(self) -> Value:
        """The length of the last dim. Raises TraceError where a row is of others: it is not known then."""
        if self.over not in (None, (-1,)) or self.groups:
            raise TraceError("the last dim is not what it reduces over: write .mean() where that is meant")
        self.over = (-1,)
        return self.cols()

    def rows(self) -> Value:
        """How many rows there are, which is known when a kernel is started."""
        return self._node("rows", (), (False, False))

    def batch(self) -> Value:
        """The first dim of the first input. Raises TraceError where that may be another with every call."""
        if self.over != ():
            raise TraceError("the first dim is known only to what reduces over the whole tensor")
        return self._node("batch", (), (False, False))

    def is_index(self, value: Value) -> bool:
        """Whether it is an INDEX input, which comes without the dims that are reduced."""
        name = self.input_name(value) or ""
        return self.inferred.get(name) is Role.INDEX or Input(name, Role.INDEX) in self.inputs

    def reverse(self, value: Value, over: tuple[int, ...] = (-1,)) -> Value:
        """Its columns in reverse order; where it has one only, it is the same.

        `over`: the dim that they are. Raises TraceError where it is another.
        """
        self._goes_over(over)
        return replace(value, is_reversed=value.has_cols and not value.is_reversed)

    def scan(self, kind: str, value: Value, over: tuple[int, ...] = (-1,)) -> Value:
        """`sum` or `prod` of all columns up to each one; from the last on where `value` is reversed.

        `over`: the dim that they are. Raises TraceError where there is one only, or the dim is another.
        """
        if not value.has_cols:
            raise TraceError("the value has one column only, so there is nothing to go along")
        self._goes_over(over)
        op = f"scan_{kind}{'_reverse' if value.is_reversed else ''}"
        return replace(self._node(op, (value.index,), (value.has_rows, True)), is_reversed=value.is_reversed)

    def exclusive(self, scan: Value, fill: float, over: tuple[int, ...] = (-1,)) -> Value:
        """The same without the column itself, shifted in from `fill`, which must be what nothing adds up to.

        Raises TraceError where `scan` is none, or one already, or goes along another dim than `over`.
        """
        node = self.nodes[scan.index]
        neutral = {"sum": 0.0, "prod": 1.0}.get(node.op.removeprefix("scan_").removesuffix("_reverse"))
        if neutral is None or fill != neutral:
            raise TraceError("only a cumsum can be shifted, with 0 before it, or a cumprod with 1")
        self._goes_over(over)
        shifted = self._node(f"{node.op}_exclusive", node.operands, self.spread[scan.index])
        return replace(shifted, is_reversed=scan.is_reversed)

    def linear(self, left: Value, right: Value) -> Value:
        """The sums of products of every row of `left` with every row of `right`, both inputs.

        Raises TraceError unless it is the only one, and `left` the first input.
        """
        first, operands = self.inputs[0].name, (self.input_name(left), self.input_name(right))
        if None in operands or left.is_reversed or right.is_reversed:
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
        if role is Role.INDEX:  # what is still written down of this graph must not trip over its columns
            self.spread[self._seen["input", (repr(name),)]] = (True, False)

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
        results = tuple(order[output.index] for output in outputs)
        # What is flipped and flipped back goes along a dim, and is pointwise all the same.
        has_rows = any(node.op.startswith(("reduce_", "scan_")) for node in nodes)
        over = self.over if has_rows and self.over is not None else (-1,)
        return Program(self.inputs, tuple(nodes), results, over, self.groups)

    def _node(self, op: str, args: tuple[int | float | str, ...], spread: tuple[bool, bool]) -> Value:
        # repr, because nan != nan
        key = (op, tuple(sorted(map(repr, args))) if op in _COMMUTATIVE else tuple(map(repr, args)))
        if key not in self._seen:
            self._seen[key] = len(self.nodes)
            self.nodes.append(Node(op, args))
            self.spread.append(spread)
            if op == "fold_sum" or self._totals.intersection(self.nodes[-1].operands):
                self._totals.add(len(self.nodes) - 1)
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


def _listed(over: tuple[int, ...]) -> str:
    return f"dim {', '.join(map(str, over))}" if over else "everything"

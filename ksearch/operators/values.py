"""What a program is written down by: values, with Python's own arithmetic signs, and what is not one yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ksearch.errors import TraceError

if TYPE_CHECKING:
    from ksearch.operators.graph import Graph  # which makes them


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One value of a graph: a tensor, or a number known only as a constant or the row length."""

    graph: Graph
    index: int
    is_flat: bool = False
    """One value a row that has lost the dim of the columns: `sum(dim=-1)` without keepdim."""
    is_reversed: bool = False
    """Its columns stand in reverse order, as `flip(-1)` puts them."""

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


@dataclass(frozen=True, slots=True)
class Shortened:
    """A tensor without its last column, as an exclusive sum is written: shifted by one, 0 in its place."""

    tensor: Value


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
    if isinstance(thing, Shortened):
        return "a part of a tensor"
    return repr(thing) if isinstance(thing, int | float | str | None) else f"a {type(thing).__name__}"

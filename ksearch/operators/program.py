"""A Program: what an op computes, as passes over the elements of a row, printable as C++.

Torch-free: the tracer makes it, the families read it, the templates print it.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from ksearch.types import Workload, canonical_json, digest


class Role(enum.StrEnum):
    """How an input spreads over the rows x cols that the op works on."""

    FULL = "full"
    """Same shape as the first input; of an op with a linear, that of what the linear gives."""
    ROW = "row"
    """One value per column, shape (cols,): a weight or a bias."""
    COLUMN = "column"
    """One value per row, shape (..., 1)."""
    SCALAR = "scalar"
    """One value for all: a tensor of one element."""
    LEFT = "left"
    """What a linear takes first: shape (..., inner)."""
    RIGHT = "right"
    """The weight of a linear as torch.nn.Linear keeps it: shape (cols, inner)."""

    @property
    def is_operand(self) -> bool:
        """Whether only a linear reads it."""
        return self in (Role.LEFT, Role.RIGHT)

    @property
    def by_row(self) -> bool:
        """Whether it has no values of its own along the columns: a field of the struct Row."""
        return self in (Role.COLUMN, Role.SCALAR)


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    role: Role = Role.FULL


class Kind(enum.StrEnum):
    """How a reduction combines the values of a row."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    SUM_EXP = "sum_exp"
    """sum(exp(value - max)), where max is the reduction `anchor` of the same stage: the online form."""
    SUM_SQUARES = "sum_squares"
    """sum((value - mean)^2), where mean is that of the sum `anchor` of the same stage."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """One reduction over the columns; its result is the field `name` of the C++ struct Row."""

    name: str
    kind: Kind
    anchor: int | None = None
    """SUM_EXP and SUM_SQUARES only: index in the stage of the MAX or SUM it is taken relative to."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass over a row: the reductions that need only the inputs and earlier stages' results."""

    reductions: tuple[Reduction, ...]
    inputs: tuple[str, ...]
    """Names of the FULL and ROW inputs that the pass reads."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A Program laid out for a kernel: its stages, and the C++ text that they call.

    The text defines (T is float on CUDA, a SIMD vector or float on the CPU; KS_FN is the function
    qualifier that the template defines before it):

        template <class T> struct Element { T x, weight, ...; };   // one field per FULL and ROW input
        struct Row { float r0, r1, ...; };  // reductions, what is derived from them, COLUMN and SCALAR inputs
        template <class T> KS_FN void stage0(const Element<T>& e, const Row& row, T (&value)[K]);
        KS_FN void finish0(Row& row);           // after stage 0's reductions are stored in row
        template <class T> KS_FN void output(const Element<T>& e, const Row& row, T (&value)[OUTPUTS]);

    `begin(Row&)` runs once the COLUMN and SCALAR inputs are loaded, before stage 0. Row values enter element
    expressions as `ks::splat<T>(row.r0)`, constants as `ks::splat<T>(0.5f)`, functions as `ks::exp(t3)`.
    A value that several functions compute is `const T t<number> = ...;` by the same name in all of them.
    `COLS` (constexpr long long, the row length) is defined by the template before the text.
    """

    stages: tuple[Stage, ...]
    output_inputs: tuple[str, ...]
    """Names of the FULL and ROW inputs that the outputs' expressions read."""
    text: str


LEAVES = ("input", "const", "cols", "source", "linear")
"""Nodes that are computed from no other."""

ACCUMULATED = "acc"
"""What the result of a linear is called in the program of what follows it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that any kernel must do."""

    bytes: int
    """Every input that is read, once, and every output, once."""
    operations: int
    """Functions and arithmetic per element, reductions included, over all elements."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the program in order of definition: an input, a constant, a function, a reduction."""

    op: str
    """`input`, `const`, `cols` (the row length), a function of `ks::`, an arithmetic or comparison sign,
    `neg`, `where` (comparison, then, else), or `reduce_sum`, `reduce_max`, `reduce_min`. A program may have
    one `linear`: the products of two inputs' rows. The Program of an op with an own template has `source`
    instead: the digest of its reference's text."""
    args: tuple[int | float | str, ...]
    """Indices of earlier nodes; for `input` its name, for `linear` the names of its LEFT and its RIGHT, for
    `const` its value."""

    @property
    def operands(self) -> tuple[int, ...]:
        """The earlier nodes that this one is computed from."""
        return () if self.op in LEAVES else tuple(int(arg) for arg in self.args)


@dataclass(frozen=True, slots=True)
class Program:
    """What an op computes on rows of length cols, free of shape and dtype."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    """Index of the node that each output is, in order: of the full shape, or after a linear one a row."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """What a kernel calls the pointers that it writes to: `out0`, `out1` and so on."""
        return tuple(f"out{k}" for k in range(len(self.outputs)))

    @property
    def digest(self) -> str:
        return _digest(self)

    @property
    def family(self) -> str:
        """`pointwise`, `rowwise` where anything is reduced over the columns, `linear` where it starts so."""
        if self.linear is not None:
            return "linear"
        return "rowwise" if any(n.op.startswith("reduce_") for n in self.nodes) else "pointwise"

    @property
    def linear(self) -> Node | None:
        """The linear that the program starts with."""
        return next((node for node in self.nodes if node.op == "linear"), None)

    @property
    def epilogue(self) -> Program:
        """What follows the linear: the same program with the linear's result as its first, FULL input `acc`.

        Raises ValueError where there is no linear.
        """
        if self.linear is None:
            raise ValueError("the program has no linear")
        others = tuple(item for item in self.inputs if not item.role.is_operand)
        nodes = tuple(Node("input", (ACCUMULATED,)) if n.op == "linear" else n for n in self.nodes)
        return Program((Input(ACCUMULATED), *others), nodes, self.outputs)

    @property
    def per_row(self) -> tuple[bool, ...]:
        """For each output, whether it has one value a row rather than the full shape."""
        elementwise = self.elementwise
        return tuple(not elementwise[index] for index in self.outputs)

    @property
    def elementwise(self) -> tuple[bool, ...]:
        """For each node, whether it has a value per column rather than one per row."""
        roles = {item.name: item.role for item in self.inputs}
        per_column: list[bool] = []
        for node in self.nodes:
            if node.op in ("linear", "source"):
                per_column.append(True)
            elif node.op == "input":
                per_column.append(not roles[str(node.args[0])].by_row)
            else:
                reduced = node.op.startswith("reduce_")
                per_column.append(not reduced and any(per_column[i] for i in node.operands))
        return tuple(per_column)

    @property
    def online_kinds(self) -> frozenset[Kind]:
        """Which of SUM_EXP and SUM_SQUARES can be taken in one pass with what they are relative to."""
        from ksearch.operators import schedule  # that module is written in terms of this one

        return frozenset(pair.kind for pair in schedule.online_pairs(self).values())

    def schedule(self, online: Collection[Kind] = ()) -> Schedule:
        """The program as passes over a row; sums of the kinds `online` share their max's or mean's pass."""
        from ksearch.operators import schedule  # that module is written in terms of this one

        return schedule.lay_out(self, frozenset(online))

    def cost(self, workload: Workload) -> Cost:
        """What must happen at least, on any machine."""
        read = {str(node.args[0]) for node in self.nodes if node.op == "input"}
        if self.linear is not None:
            read |= {str(name) for name in self.linear.args}
        sizes = {
            Role.FULL: workload.numel, Role.ROW: workload.cols, Role.COLUMN: workload.rows, Role.SCALAR: 1,
            Role.LEFT: workload.rows * workload.inner, Role.RIGHT: workload.cols * workload.inner,
        }  # fmt: skip
        elements = sum(workload.rows if per_row else workload.numel for per_row in self.per_row)
        elements += sum(sizes[item.role] for item in self.inputs if item.name in read)
        per_element = sum(
            1
            for node, per_column in zip(self.nodes, self.elementwise, strict=True)
            if node.op.startswith("reduce_") or (per_column and node.op not in LEAVES)
        )
        per_element += 2 * workload.inner
        return Cost(bytes=elements * workload.itemsize, operations=per_element * workload.numel)


def as_tuple(result: Any) -> tuple[Any, ...]:
    """What a function returns, as its outputs in order; most have one."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


@functools.lru_cache(maxsize=1024)
def _digest(program: Program) -> str:
    """Kept, because every load of a kernel asks for it: 100 us, found again in 2 us."""
    return digest(canonical_json(asdict(program)))[:16]

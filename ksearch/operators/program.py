"""A Program: what an op computes, as passes over the elements of a row, printable as C++.

Torch-free: the tracer makes it, the families read it, the templates print it.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from ksearch.launch import Launch
from ksearch.operators.stages import Kind, Schedule
from ksearch.types import ACROSS, CHANNELS, EACH, canonical_json, digest, layout_over


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
    INDEX = "index"
    """One int64 per row, shape (...): the place of one of its columns, such as the class of a sample."""
    CHANNEL = "channel"
    """One value for each place of the second dim, shape (channels,): the weight of a batch or group norm."""
    MASK = "mask"
    """Same shape as the first input, of bool: whether the element counts."""

    @property
    def is_operand(self) -> bool:
        """Whether only a linear reads it."""
        return self in (Role.LEFT, Role.RIGHT)

    @property
    def by_row(self) -> bool:
        """Whether it has no values of its own along the columns: a field of the struct Row."""
        return self in (Role.COLUMN, Role.SCALAR, Role.INDEX)


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    role: Role = Role.FULL

    def dtype(self, dtype: str) -> str:
        """What it holds in a workload of that dtype."""
        return {Role.INDEX: "int64", Role.MASK: "bool"}.get(self.role, dtype)


LEAVES = ("input", "const", "cols", "rows", "batch", "source", "linear")
"""Nodes that are computed from no other."""

ACCUMULATED = "acc"
"""What the result of a linear is called in the program of what follows it."""

EACH_ITS_OWN, ACROSS_SAMPLES = -1, -2
"""`Program.groups` where each place of the second dim, a channel, is a group, in each sample or in all."""

SCANNED = "scanned"
"""What the result of a scan is called in the program of what follows it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the program in order of definition: an input, a constant, a function, a reduction."""

    op: str
    """`input`, `const`, `cols` (the row length), a function of `ks::`, an arithmetic or comparison sign,
    `neg`, `where` (comparison, then, else), `reduce_sum` or another Kind, `pick` (a value, an INDEX input:
    the value of the column so named), or `fold_sum`, the sum of a row's value over all rows. `rows` is how
    many there are, `batch` the first dim of the first input. A program may have
    one `linear`: the products of two inputs' rows; or one scan along the columns: `scan_sum` or `scan_prod`,
    then `_reverse` where it begins with the last, then `_exclusive` where it leaves out the column itself.
    The Program of an op with an own template has `source` instead: the digest of its reference's text."""
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
    """Index of the node that each output is, in order; see `output_roles`."""
    over: tuple[int, ...] = (-1,)
    """The dims that a row is made of, counted from the last; empty: all of them, and there is one row."""
    groups: int = 0
    """The second dim is cut into as many parts, each of which with all dims behind it is a row; EACH_ITS_OWN:
    into its places; ACROSS_SAMPLES: the same, and a row has them of the whole first dim. 0: it is not."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """What a kernel calls the pointers that it writes to: `out0`, `out1` and so on."""
        return tuple(f"out{k}" for k in range(len(self.outputs)))

    @property
    def digest(self) -> str:
        return _digest(self)

    @property
    def family(self) -> str:
        """`pointwise`, `rowwise` where anything is reduced over the columns, `reduction` where nothing else
        is left of a row, `strided` where a row is of other dims than the last, `linear` where it starts so,
        `scan` where something is summed up along the columns, `strided_scan` where these are another dim than
        the last."""
        if self.linear is not None:
            return "linear"
        if self.scan is not None:
            return "scan" if self.over == (-1,) else "strided_scan"
        if not any(n.op.startswith(("reduce_", "fold_")) for n in self.nodes):
            return "pointwise"
        if self.over and self.over[-1] != -1:
            return "strided"
        return "reduction" if all(self.per_row) else "rowwise"

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
        return Program((Input(ACCUMULATED), *others), nodes, self.outputs, self.over)

    @property
    def bias(self) -> Input | None:
        """The ROW input that is added to the linear's result before anything else is done with either."""
        places = [i for i, node in enumerate(self.nodes) if node.op == "linear"]
        used = [i for node in self.nodes for i in node.operands] + list(self.outputs)
        named = [node.args[0] for node in self.nodes if node.op == "input"]
        for node in self.nodes:
            if node.op != "+" or not set(places) & set(node.operands):
                continue
            others = [i for i in node.operands if i not in places and self.nodes[i].op == "input"]
            if len(others) != 1 or any(used.count(i) != 1 for i in (*places, *others)):
                return None
            name = self.nodes[others[0]].args[0]
            rows = (item for item in self.inputs if item.name == name and item.role is Role.ROW)
            return next(rows, None) if named.count(name) == 1 else None
        return None

    def of_kernel(self, launch: Launch) -> Program:
        """What a kernel computes that is started so: all, or what follows the part that PyTorch does."""
        if not launch.torch_product:
            return self
        return self.epilogue if launch.torch_bias is None else self.after_bias

    @property
    def after_bias(self) -> Program:
        """The epilogue with the sum of the linear's result and its bias in the place of `acc`.

        Raises ValueError where there is no such sum.
        """
        bias, epilogue = self.bias, self.epilogue
        if bias is None:
            raise ValueError("the program has no bias")
        gone = {i for i, node in enumerate(epilogue.nodes) if node.args in ((ACCUMULATED,), (bias.name,))}
        kept = [i for i in range(len(epilogue.nodes)) if i not in gone]
        place = {old: new for new, old in enumerate(kept)}
        nodes = []
        for i in kept:
            node = epilogue.nodes[i]
            if set(node.operands) & gone:
                node = Node("input", (ACCUMULATED,))
            elif node.operands:
                node = Node(node.op, tuple(place[operand] for operand in node.operands))
            nodes.append(node)
        inputs = tuple(item for item in epilogue.inputs if item != bias)
        return Program(inputs, tuple(nodes), tuple(place[i] for i in self.outputs), self.over)

    @property
    def layout(self) -> str:
        """See `Workload.layout`."""
        if self.groups:
            names = {EACH_ITS_OWN: EACH, ACROSS_SAMPLES: ACROSS}
            return f"groups {names.get(self.groups, self.groups)}"
        return CHANNELS if self.has_channels else layout_over(self.over)

    @property
    def has_channels(self) -> bool:
        return any(item.role is Role.CHANNEL for item in self.inputs)

    @property
    def scan(self) -> Node | None:
        """What is summed up, or multiplied, along the columns."""
        return next((node for node in self.nodes if node.op.startswith("scan_")), None)

    @property
    def around_scan(self) -> tuple[Program, Program]:
        """What comes before the scan, whose only output it takes; and what follows it, with the scan's result
        as its last, FULL input `scanned`. Both are pointwise, and have all inputs. Raises ValueError where
        there is no scan.
        """
        if self.scan is None:
            raise ValueError("the program has no scan")
        after = tuple(Node("input", (SCANNED,)) if node is self.scan else node for node in self.nodes)
        return (
            Program(self.inputs, self.nodes, self.scan.operands),
            Program((*self.inputs, Input(SCANNED)), after, self.outputs),
        )

    @property
    def per_row(self) -> tuple[bool, ...]:
        """For each output, whether it has one value a row, or for all, rather than the full shape."""
        return tuple(role is not Role.FULL for role in self.output_roles)

    @property
    def output_roles(self) -> tuple[Role, ...]:
        """For each output FULL, COLUMN (one value a row) or SCALAR (one value for all rows)."""
        elementwise, total = self.elementwise, self._depends_on("fold_sum")
        return tuple(
            Role.FULL if elementwise[i] else Role.SCALAR if total[i] else Role.COLUMN for i in self.outputs
        )

    @property
    def is_total(self) -> bool:
        """Whether something is summed over the rows, so that rows are no longer apart."""
        return Role.SCALAR in self.output_roles

    def output_dtypes(self, dtype: str) -> tuple[str, ...]:
        """What each output holds in a workload of that dtype: places are int64."""
        places = ("reduce_argmax", "reduce_argmin")
        return tuple("int64" if self.nodes[i].op in places else dtype for i in self.outputs)

    @property
    def index(self) -> str:
        """Name of an INDEX input; empty where there is none."""
        return next((item.name for item in self.inputs if item.role is Role.INDEX), "")

    def marks(self, name: str) -> tuple[int, ...]:
        """The numbers that an INDEX input is compared with: they mean no column."""
        given = {i for i, node in enumerate(self.nodes) if node.op == "input" and node.args == (name,)}
        compared = [node.operands for node in self.nodes if node.op in ("==", "!=")]
        others = [b if a in given else a for a, b in compared if {a, b} & given]
        return tuple(int(float(self.nodes[i].args[0])) for i in others if self.nodes[i].op == "const")

    def _depends_on(self, op: str) -> list[bool]:
        """For each node, whether it is `op` or computed from it."""
        found: list[bool] = []
        for node in self.nodes:
            found.append(node.op == op or any(found[i] for i in node.operands))
        return found

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
                reduced = node.op.startswith(("reduce_", "pick", "fold_"))
                per_column.append(not reduced and any(per_column[i] for i in node.operands))
        return tuple(per_column)

    @property
    def online_kinds(self) -> frozenset[Kind]:
        """Which of SUM_EXP and SUM_SQUARES can be taken in one pass with what they are relative to."""
        from ksearch.operators import schedule  # that module is written in terms of this one

        return frozenset(pair.kind for pair in schedule.online_pairs(self).values())

    def schedule(self, online: Collection[Kind] = (), *, wide: bool = False) -> Schedule:
        """The program as passes over a row; sums of the kinds `online` share their max's or mean's pass."""
        from ksearch.operators import schedule  # that module is written in terms of this one

        return schedule.lay_out(self, frozenset(online), wide)


def as_tuple(result: Any) -> tuple[Any, ...]:
    """What a function returns, as its outputs in order; most have one."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


@functools.lru_cache(maxsize=1024)
def _digest(program: Program) -> str:
    """Kept, because every load of a kernel asks for it: 100 us, found again in 2 us."""
    fields = asdict(program)
    if program.over == (-1,):  # as programs were before there was another
        del fields["over"]
    if not program.groups:
        del fields["groups"]
    return digest(canonical_json(fields))[:16]

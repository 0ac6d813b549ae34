"""Lay a Program out as passes over a row, and print them as the C++ that both backends' templates call.

A value is computed as seldom as its shape allows: what is the same for a whole row is computed once
between two passes and handed on as a field of Row.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ksearch.operators.program import LEAVES, Node, Program
from ksearch.operators.stages import Kind, Pick, Reduction, Schedule, Stage

_SIGNS = ("+", "-", "*", "/", "<", "<=", ">", ">=", "==", "!=")
_COMPARISONS = _SIGNS[4:]
_Operand: TypeAlias = Callable[[int], str]
"""How the code at hand names a node."""
_KINDS = {
    f"reduce_{kind}": kind for kind in (Kind.SUM, Kind.MAX, Kind.MIN, Kind.PROD, Kind.ARGMAX, Kind.ARGMIN)
}
_BEGIN, _PICKED = -2, -1
"""When a row's values are computed that need no reduction: first of all, and with what was picked."""
_CONCLUDED = 1 << 30
"""The same of what needs a sum over all rows."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A sum that can be taken in the same pass as the reduction that its terms are relative to."""

    kind: Kind
    anchor: int
    """Index of that reduction, a max or a sum."""


def softmax_max(nodes: Sequence[Node], index: int) -> int | None:
    """The index of m where node `index` is sum(exp(f - m)) and m is amax(f), else None."""
    for exponential in _operands(nodes, index, "reduce_sum"):
        for difference in _operands(nodes, exponential, "exp"):
            match _operands(nodes, difference, "-"):
                case (f, m) if _operands(nodes, m, "reduce_max") == (f,):
                    return m
    return None


def deviation_sum(nodes: Sequence[Node], index: int) -> int | None:
    """The index of s where node `index` is sum((f - s / cols)^2) and s is sum(f), else None."""
    for square in _operands(nodes, index, "reduce_sum"):
        factors = _operands(nodes, square, "*")
        if len(set(factors)) != 1:
            continue
        match _operands(nodes, factors[0], "-"):
            case (f, mean):
                match _operands(nodes, mean, "/"):
                    case (s, cols) if nodes[cols].op == "cols" and _operands(nodes, s, "reduce_sum") == (f,):
                        return s
    return None


def _operands(nodes: Sequence[Node], index: int, op: str) -> tuple[int, ...]:
    return nodes[index].operands if nodes[index].op == op else ()


def online_pairs(program: Program) -> dict[int, Pair]:
    """For each sum that can be taken in one pass with what it is relative to: what that is."""
    found: dict[int, Pair] = {}
    for index in range(len(program.nodes)):
        if (largest := softmax_max(program.nodes, index)) is not None:
            found[index] = Pair(Kind.SUM_EXP, largest)
        elif (total := deviation_sum(program.nodes, index)) is not None:
            found[index] = Pair(Kind.SUM_SQUARES, total)
    return found


@functools.lru_cache(maxsize=256)
def lay_out(program: Program, online: frozenset[Kind], wide: bool = False) -> Schedule:
    """The stages of `program` and the C++ text that they call; see Schedule."""
    pairs = {index: pair for index, pair in online_pairs(program).items() if pair.kind in online}
    return _Layout(program, pairs, wide).schedule()


@dataclass
class _Body:
    """The statements of one function over the elements of a row, and what it reads."""

    lines: list[str] = field(default_factory=list)
    inputs: set[str] = field(default_factory=set)


class _Layout:
    def __init__(self, program: Program, pairs: Mapping[int, Pair], wide: bool) -> None:
        self.program, self.pairs, self.wide = program, pairs, wide
        self.nodes = program.nodes
        self.elementwise = program.elementwise
        self.roles = {item.name: item.role for item in program.inputs}
        self.ready: list[int] = []
        """For each node, the last stage whose results it needs, or _BEGIN, _PICKED or _CONCLUDED."""
        self.stages: list[list[int]] = []
        """For each stage, the reductions taken in it."""
        for i, node in enumerate(self.nodes):
            ready = max((self.ready[j] for j in node.operands), default=_BEGIN)
            if node.op == "pick":
                ready = _PICKED
            elif node.op in ("fold_sum", "rows"):
                ready = _CONCLUDED
            elif node.op in _KINDS:
                ready = self.ready[pairs[i].anchor] if i in pairs else max(ready, _PICKED) + 1
                self.stages.extend([] for _ in range(ready + 1 - len(self.stages)))
                self.stages[ready].append(i)
            self.ready.append(ready)
        self.picks = [i for i, node in enumerate(self.nodes) if node.op == "pick"]
        self.folds = [i for i, node in enumerate(self.nodes) if node.op == "fold_sum"]
        taken = [i for stage in self.stages for i in stage] + self.picks + self.folds
        self.reduction_names = {i: f"r{number}" for number, i in enumerate(taken)}
        self.fields: set[int] = set()
        """Row values that are derived from others and outlive the function that computes them."""

    def schedule(self) -> Schedule:
        reduced = [[self._reduced(i) for i in stage] for stage in self.stages]
        passes = [self._body(values) for values in reduced]
        picked = self._body([self.nodes[i].operands[0] for i in self.picks])
        output = self._body([] if self.folds else self.program.outputs)
        summed = [self.nodes[i].operands[0] for i in self.folds]
        self.fields.update(i for i in summed if self._is_derived(i))
        if self.folds:
            self.fields.update(i for i in self.program.outputs if self._is_derived(i))
        needed = self._needed()
        text = [self._element(), self._row(), self._finish("begin", _BEGIN, needed)]
        if self.picks:
            text.append(self._pass("pick", picked, len(self.picks)))
            text.append(self._finish("finish_pick", _PICKED, needed))
        for k, body in enumerate(passes):
            text += [self._pass(f"stage{k}", body, len(reduced[k])), self._finish(f"finish{k}", k, needed)]
        if self.folds:
            text.append(self._finish("finish_total", _CONCLUDED, needed))
            text.append(self._of_row("terms", summed))
            text.append(self._of_row("conclude", self.program.outputs))
        else:
            text.append(self._pass("output", output, len(self.program.outputs)))
        return Schedule(
            stages=tuple(
                Stage(tuple(self._reduction(i, stage) for i in stage), self._in_order(body.inputs))
                for stage, body in zip(self.stages, passes, strict=True)
            ),
            output_inputs=self._in_order(output.inputs),
            text="\n".join(text),
            picks=tuple(self._pick(i) for i in self.picks),
            pick_inputs=self._in_order(picked.inputs),
            totals=tuple(self.reduction_names[i] for i in self.folds),
            places=tuple(self.reduction_names[i] if i in self.places else "" for i in self.program.outputs),
        )

    @property
    def places(self) -> set[int]:
        """The reductions that give a place among the columns."""
        return {i for i, node in enumerate(self.nodes) if node.op in ("reduce_argmax", "reduce_argmin")}

    def _pick(self, index: int) -> Pick:
        return Pick(self.reduction_names[index], str(self.nodes[self.nodes[index].operands[1]].args[0]))

    def _reduction(self, index: int, stage: list[int]) -> Reduction:
        name = self.reduction_names[index]
        if index in self.pairs:
            return Reduction(name, self.pairs[index].kind, anchor=stage.index(self.pairs[index].anchor))
        return Reduction(name, _KINDS[self.nodes[index].op])

    def _reduced(self, index: int) -> int:
        """The value that a reduction takes of each element; of an online sum, what its anchor takes."""
        anchor = self.pairs[index].anchor if index in self.pairs else index
        return self.nodes[anchor].operands[0]

    def _in_order(self, names: set[str]) -> tuple[str, ...]:
        return tuple(item.name for item in self.program.inputs if item.name in names)

    # Elements: statements on T, one per value.

    def _body(self, results: Sequence[int]) -> _Body:
        body, done, pending = _Body(), set[int](), list(results)
        while pending:
            i = pending[-1]
            missing = [] if self._is_inline(i) else [j for j in self._inputs(i) if j not in done]
            if missing:
                pending.append(missing[0])
                continue
            pending.pop()
            if i not in done:
                done.add(i)
                self._note(i, body)
                if not self._is_inline(i):
                    body.lines.append(f"const T t{i} = {self._expression(i, self._element_operand)};")
        values = [(k, i) for k, i in enumerate(results) if i not in self.places]
        body.lines += [f"value[{k}] = {self._element_operand(i)};" for k, i in values]
        return body

    def _is_inline(self, i: int) -> bool:
        """Whether an element expression names node `i` directly rather than by a statement of its own."""
        return not self.elementwise[i] or self.nodes[i].op == "input"

    def _note(self, i: int, body: _Body) -> None:
        node = self.nodes[i]
        if node.op == "input" and self.elementwise[i]:
            body.inputs.add(str(node.args[0]))
        elif not self.elementwise[i] and self._is_derived(i):
            self.fields.add(i)

    def _element_operand(self, i: int) -> str:
        node = self.nodes[i]
        if not self.elementwise[i]:
            value = self._row_operand(i, None)
            return value if self.wide else f"ks::splat<T>({value})"
        return f"e.{node.args[0]}" if node.op == "input" else f"t{i}"

    # Rows: statements on float, or on T where lanes are rows, between the passes.

    def _is_derived(self, i: int) -> bool:
        """Whether node `i` is one value per row that is neither given nor reduced."""
        return not self.elementwise[i] and self.nodes[i].op not in (*LEAVES, "pick", "fold_sum", *_KINDS)

    def _needed(self) -> list[int]:
        """Every derived row value that some field needs; completes `fields` on the way."""
        needed: set[int] = set()
        pending = list(self.fields)
        while pending:
            i = pending.pop()
            if i in needed:
                continue
            needed.add(i)
            for j in filter(self._is_derived, self._inputs(i)):
                pending.append(j)
                if self.ready[j] < self.ready[i]:
                    self.fields.add(j)
        return sorted(needed)

    def _row_operand(self, i: int, stage: int | None) -> str:
        """How float code names node `i`; `stage` is that of the function it is in, None in a pass."""
        node = self.nodes[i]
        if node.op in ("const", "cols", "batch"):
            is_const = node.op == "const"
            number = float_literal(float(node.args[0])) if is_const else f"float({node.op.upper()})"
            return f"ks::splat<T>({number})" if self.wide else number
        if node.op == "rows":
            return "row._rows"
        if node.op == "input":
            return f"row.{node.args[0]}"
        if i in self.reduction_names:
            return f"row.{self.reduction_names[i]}"
        return f"v{i}" if self.ready[i] == stage else f"row.v{i}"

    def _of_row(self, name: str, values: Sequence[int]) -> str:
        """A function that gives values of a row, none of which has any along the columns."""
        lines = [f"value[{k}] = {self._row_operand(i, None)};" for k, i in enumerate(values)]
        return _function(f"KS_FN void {name}(const Row& row, float (&value)[{len(values)}])", lines)

    def _finish(self, name: str, stage: int, needed: list[int]) -> str:
        lines = []
        for i in needed:
            if self.ready[i] == stage:
                expression = self._expression(i, lambda j: self._row_operand(j, stage))
                lines.append(f"const {'T' if self.wide else 'float'} v{i} = {expression};")
                if i in self.fields:
                    lines.append(f"row.v{i} = v{i};")
        kind, row = ("template <class T> ", "Row<T>") if self.wide else ("", "Row")
        return _function(f"{kind}KS_FN void {name}({row}& row)", lines)

    # Text.

    def _inputs(self, i: int) -> tuple[int, ...]:
        """The operands of node `i`, where a comparison is part of the node that it decides."""
        expanded: list[int] = []
        for j in self.nodes[i].operands:
            expanded.extend(self.nodes[j].operands if self.nodes[j].op in _COMPARISONS else (j,))
        return tuple(expanded)

    def _expression(self, i: int, operand: _Operand) -> str:
        node = self.nodes[i]
        if node.op == "where":
            test, then, otherwise = node.operands
            a, b = map(operand, self.nodes[test].operands)
            return f"({a} {self.nodes[test].op} {b}) ? {operand(then)} : {operand(otherwise)}"
        args = [operand(j) for j in node.operands]
        if node.op in _SIGNS:
            return f"{args[0]} {node.op} {args[1]}"
        return f"-{args[0]}" if node.op == "neg" else f"ks::{node.op}({', '.join(args)})"

    def _element(self) -> str:
        fields = [item.name for item in self.program.inputs if not item.role.by_row]
        return "template <class T> struct Element { " + " ".join(f"T {name};" for name in fields) + " };"

    def _row(self) -> str:
        fields = [item.name for item in self.program.inputs if item.role.by_row]
        fields += [name for i, name in self.reduction_names.items() if i not in self.places]
        fields += [f"v{i}" for i in sorted(self.fields)]
        fields += ["_rows"] if any(node.op == "rows" for node in self.nodes) else []
        number, place = ("T", "ks::Bits<T>") if self.wide else ("float", "long long")
        places = [f"{place} {name};" for i, name in self.reduction_names.items() if i in self.places]
        floats = [f"{number} {name};" for name in fields or ["unused"]]
        return "template <class T> " * self.wide + "struct Row { " + " ".join([*floats, *places]) + " };"

    def _pass(self, name: str, body: _Body, width: int) -> str:
        row = "Row<T>" if self.wide else "Row"
        arguments = f"const Element<T>& e, const {row}& row, T (&value)[{width}]"
        return _function(f"template <class T> KS_FN void {name}({arguments})", body.lines)


def _function(head: str, lines: list[str]) -> str:
    return "\n".join([f"{head} {{", *(f"    {line}" for line in lines), "}"])


def float_literal(value: float) -> str:
    """The float nearest to `value` as C++: the shortest decimal that reads back the same."""
    single = _single(value)
    if math.isnan(single):
        return "KS_NAN"
    if math.isinf(single):
        return "KS_INFINITY" if single > 0 else "-KS_INFINITY"
    texts = (f"{single:.{digits}g}" for digits in range(1, 10))
    text = next(text for text in texts if _single(float(text)) == single)
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _single(value: float) -> float:
    """`value` rounded to a float, where too large to infinity: what torch does with a scalar operand."""
    try:
        (single,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return float(single)

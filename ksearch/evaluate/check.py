"""Runs a candidate on memory that notices, and says what is wrong with what it did.

Screening checks some rows with every kind of value; the final check covers the whole workload, block
by block, with other values. Both read their result back from the device once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ksearch.evaluate import inputs as values
from ksearch.evaluate import tolerance
from ksearch.evaluate.buffers import POISONS, Guarded
from ksearch.evaluate.messages import Finding
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.tolerance import Reference
from ksearch.operators.program import Role
from ksearch.types import Status

_SUBSET_BYTES = {"cuda": 32 << 20, "cpu": 8 << 20}
"""Of the input rows that a candidate is screened on."""

Run = Callable[[Sequence[Guarded], Sequence[Guarded]], None]
"""Starts the candidate on inputs and outputs."""


@dataclass(frozen=True, slots=True)
class _Case:
    """Inputs of a few rows, and what is right for them."""

    inputs: list[Guarded]
    pristine: list[torch.Tensor]
    """All memory of the inputs, guards included, as it was."""
    references: list[tuple[values.Part, list[Reference]]]
    """For each part what is right for each output."""


class Subset:
    """Some rows of a workload, with everything that does not depend on the candidate made beforehand."""

    def __init__(self, problem: Problem, seed: int) -> None:
        rows, cols = problem.workload.rows, problem.workload.cols
        most = max(3, _SUBSET_BYTES[problem.device.type] // (cols * problem.dtype.itemsize))
        # An odd number of them, so that the last of several rows at a time finds no others.
        self.rows = rows if rows <= most else most - 1 + most % 2
        parts = values.split(self.rows, cols, flat=problem.flat, max_elements=self.rows * cols)
        # Where there are fewer lines than kinds of line, it takes more inputs to see every kind.
        first_kinds = range(0, len(values.CYCLE), parts[0].lines)
        self._cases = [
            [_make_case(problem, self.rows, parts, seed, first_kind, shift=0) for first_kind in first_kinds],
            [_make_case(problem, self.rows, parts, seed, 0, shift=1)],
        ]
        self._outputs = [[problem.allocate_outputs(self.rows, shift) for _ in range(2)] for shift in (0, 1)]

    def check(self, run: Run, *, misaligned: bool) -> Finding:
        """Try the candidate on every case; `misaligned`: also on bases that are one element off."""
        evidence = [_Evidence() for _ in self._outputs[0][0]]
        modified = []
        for shift in (0, 1) if misaligned else (0,):
            first, second = self._outputs[shift]
            for case in self._cases[shift]:
                for number, outputs in enumerate((first, second)):
                    for output in outputs:
                        output.poison(number)
                    run(case.inputs, outputs)
                pairs = zip(case.inputs, case.pristine, strict=True)
                modified += [(tensor.raw != was).any() for tensor, was in pairs]
                for each, one, other in zip(evidence, first, second, strict=True):
                    each.damaged += [one.damaged(), other.damaged()]
                    each.compare(one.bits, other.bits, one.values.dtype)
                for part, references in case.references:
                    for each, one, reference in zip(evidence, first, references, strict=True):
                        each.verdicts.append(reference.judge(part.take(one.values, Role.FULL)))
        return _conclude(modified, evidence)


def _make_case(
    problem: Problem, rows: int, parts: Sequence[values.Part], seed: int, first_kind: int, shift: int
) -> _Case:
    tensors = problem.allocate(rows, shift)
    for tensor, declared in zip(tensors, problem.declared, strict=True):
        values.fill(tensor.values, declared, parts, seed, most=problem.most, first_kind=first_kind)
    references = []
    for part in parts:
        pairs = zip(tensors, problem.declared, strict=True)
        blocks = [part.take(tensor.values, declared.role) for tensor, declared in pairs]
        references.append((part, problem.references(blocks, first_kind + part.first)))
    return _Case(tensors, [tensor.raw.clone() for tensor in tensors], references)


def check_whole(problem: Problem, run: Run) -> Finding:
    """Check every row of the workload, in blocks of bounded memory."""
    problem.fill_for_checking()
    evidence = [_Evidence() for _ in problem.outputs]
    firsts = []
    for number in range(2):
        for output in problem.outputs:
            output.poison(number)
        run(problem.inputs, problem.outputs)
        for each, output in zip(evidence, problem.outputs, strict=True):
            each.damaged.append(output.damaged())
        if number == 0:
            firsts = [output.bits.clone() for output in problem.outputs]
    modified = [tensor.damaged() for tensor in problem.inputs]
    modified += [_check_part(problem, part, firsts, evidence) for part in problem.parts()]
    return _conclude(modified, evidence)


def _check_part(
    problem: Problem, part: values.Part, firsts: Sequence[torch.Tensor], evidence: Sequence[_Evidence]
) -> torch.Tensor:
    """Judge one part of both runs' outputs; whether its inputs were modified. Keeps nothing of its size."""
    blocks, modified = problem.make_again(part)
    references = problem.references(blocks, part.first)
    span = slice(part.offset, part.offset + part.lines * part.width)
    for each, first, output, reference in zip(evidence, firsts, problem.outputs, references, strict=True):
        each.compare(first[span], output.bits[span], problem.dtype)
        each.verdicts.append(reference.judge(part.take(first.view(problem.dtype), Role.FULL)))
    return modified


@dataclass(slots=True)
class _Evidence:
    """What there is against one output, still on the device."""

    damaged: list[torch.Tensor] = field(default_factory=list)
    unwritten: list[torch.Tensor] = field(default_factory=list)
    differs: list[torch.Tensor] = field(default_factory=list)
    verdicts: list[torch.Tensor] = field(default_factory=list)

    def compare(self, first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> None:
        """Whether a run left its poison standing, and whether the two runs' results differ in any bit."""
        before_first, before_second = POISONS[dtype]
        differs = first != second
        unwritten = differs & ((first == before_first) | (second == before_second))
        self.unwritten.append(unwritten.any())
        self.differs.append(differs.any())

    def vector(self) -> torch.Tensor:
        """All of it as numbers: the three facts, then the verdicts."""
        facts = [torch.stack(each).any() for each in (self.damaged, self.unwritten, self.differs)]
        return torch.cat([torch.stack(facts).double(), *self.verdicts])


def _conclude(modified: Sequence[torch.Tensor], evidence: Sequence[_Evidence]) -> Finding:
    """Wait for the device, and name the first thing that is wrong, the most dangerous first."""
    vectors = torch.stack([each.vector() for each in evidence])
    was_modified = torch.stack(list(modified)).any().double().view(1)
    *table, is_modified = torch.cat([vectors.view(-1), was_modified]).tolist()
    length, width = vectors.shape[1], len(evidence[0].verdicts[0])
    rows = [table[start : start + length] for start in range(0, len(table), length)]
    damaged, unwritten, differs = ([row[fact] for row in rows] for fact in range(3))
    judged = [tolerance.read([row[at : at + width] for at in range(3, length, width)]) for row in rows]
    worst = max(judged, key=lambda each: math.inf if math.isnan(each.error) else each.error)
    error = None if math.isnan(worst.error) else worst.error

    def told(message: str, output: int) -> str:
        return f"output {output}: {message}" if len(evidence) > 1 else message

    if any(damaged):
        message = told("wrote outside its output", damaged.index(True))
        return Finding(Status.OUT_OF_BOUNDS, message, error, healthy=False)
    if is_modified:
        return Finding(Status.OUT_OF_BOUNDS, "input modified", error, healthy=False)
    if any(unwritten):
        message = told("left elements of the result unwritten", unwritten.index(True))
        return Finding(Status.WRONG, message, error)
    if any(differs):
        message = told("two runs on the same input differ", differs.index(True))
        return Finding(Status.NONDETERMINISTIC, message, error)
    if error is None or error > 1.0:
        what = "NaN or infinity is misplaced" if error is None else f"error is {error:.3g} times the allowed"
        message = told(f"{what} (on a row of kind {worst.kind})", judged.index(worst))
        return Finding(Status.WRONG, message, error)
    errors = {
        regime: max((each.errors[regime] for each in judged), key=lambda found: found.candidate)
        for regime in worst.errors
    }
    return Finding(Status.PASSED, error=error, errors=errors)

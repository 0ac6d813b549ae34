"""Runs a candidate on memory that notices, and says what is wrong with what it did.

Screening checks some rows with every kind of value; the final check covers the whole workload, block
by block, with other values. Both read their result back from the device once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

Run = Callable[[Sequence[Guarded], Guarded], None]
"""Starts the candidate on inputs and an output."""


@dataclass(frozen=True, slots=True)
class _Case:
    """Inputs of a few rows, and what is right for them."""

    inputs: list[Guarded]
    pristine: list[torch.Tensor]
    """All memory of the inputs, guards included, as it was."""
    references: list[tuple[values.Part, Reference]]


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
        self._outputs = [
            [Guarded((self.rows, cols), problem.dtype, problem.device, shift) for _ in range(2)]
            for shift in (0, 1)
        ]

    def check(self, run: Run, *, misaligned: bool) -> Finding:
        """Try the candidate on every case; `misaligned`: also on bases that are one element off."""
        facts, verdicts = [], []
        for shift in (0, 1) if misaligned else (0,):
            first, second = self._outputs[shift]
            for case in self._cases[shift]:
                for number, output in enumerate((first, second)):
                    output.poison(number)
                    run(case.inputs, output)
                pairs = zip(case.inputs, case.pristine, strict=True)
                modified = torch.stack([(tensor.raw != was).any() for tensor, was in pairs]).any()
                damaged = first.damaged() | second.damaged()
                facts.append(
                    torch.stack([damaged, modified, *_compare(first.bits, second.bits, first.values.dtype)])
                )
                for part, reference in case.references:
                    verdicts.append(reference.judge(part.take(first.values, Role.FULL)))
        return _conclude(facts, verdicts)


def _make_case(
    problem: Problem, rows: int, parts: Sequence[values.Part], seed: int, first_kind: int, shift: int
) -> _Case:
    tensors = problem.allocate(rows, shift)
    for tensor, declared in zip(tensors, problem.op.inputs, strict=True):
        values.fill(tensor.values, declared, parts, seed, most=problem.most, first_kind=first_kind)
    references = []
    for part in parts:
        pairs = zip(tensors, problem.op.inputs, strict=True)
        blocks = [part.take(tensor.values, declared.role) for tensor, declared in pairs]
        references.append((part, problem.reference(blocks, first_kind + part.first)))
    return _Case(tensors, [tensor.raw.clone() for tensor in tensors], references)


def check_whole(problem: Problem, run: Run) -> Finding:
    """Check every row of the workload, in blocks of bounded memory."""
    problem.fill_for_checking()
    output = problem.output
    output.poison(0)
    run(problem.inputs, output)
    damaged = output.damaged()
    first = output.bits.clone()
    output.poison(1)
    run(problem.inputs, output)
    damaged |= output.damaged() | torch.stack([tensor.damaged() for tensor in problem.inputs]).any()
    first_values = first.view(problem.dtype)
    facts, verdicts = [], []
    for part in problem.parts():
        blocks, modified = problem.make_again(part)
        span = slice(part.offset, part.offset + part.lines * part.width)
        facts.append(
            torch.stack([damaged, modified, *_compare(first[span], output.bits[span], problem.dtype)])
        )
        verdicts.append(problem.reference(blocks, part.first).judge(part.take(first_values, Role.FULL)))
    return _conclude(facts, verdicts)


def _compare(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Whether a run left its poison standing, and whether the two runs' results differ in any bit."""
    before_first, before_second = POISONS[dtype]
    differs = first != second
    unwritten = differs & ((first == before_first) | (second == before_second))
    return [unwritten.any(), differs.any()]


def _conclude(facts: Sequence[torch.Tensor], verdicts: Sequence[torch.Tensor]) -> Finding:
    """Wait for the device, and name the first thing that is wrong, the most dangerous first."""
    bits = torch.stack(list(facts)).any(0).double()
    table = torch.cat([torch.stack(list(verdicts)).view(-1), bits]).tolist()
    damaged, modified, unwritten, differs = table[-4:]
    width = len(verdicts[0])
    judged = tolerance.read([table[start : start + width] for start in range(0, len(table) - 4, width)])
    error = None if math.isnan(judged.error) else judged.error
    if damaged:
        return Finding(Status.OUT_OF_BOUNDS, "wrote outside its output", error, healthy=False)
    if modified:
        return Finding(Status.OUT_OF_BOUNDS, "input modified", error, healthy=False)
    if unwritten:
        return Finding(Status.WRONG, "left elements of the result unwritten", error)
    if differs:
        return Finding(Status.NONDETERMINISTIC, "two runs on the same input differ", error)
    if error is None or error > 1.0:
        what = "NaN or infinity is misplaced" if error is None else f"error is {error:.3g} times the allowed"
        return Finding(Status.WRONG, f"{what} (on a row of kind {judged.kind})", error)
    return Finding(Status.PASSED, error=error, errors=judged.errors)

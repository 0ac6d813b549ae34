"""Runs a candidate on memory that notices, and says what is wrong with what it did.

Screening checks some rows with every kind of value; the final check covers the whole workload, block
by block, with other values. Both read their result back from the device once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ksearch.evaluate import inputs as values
from ksearch.evaluate import tolerance, weights
from ksearch.evaluate.buffers import POISONS, Guarded
from ksearch.evaluate.messages import Finding
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.tolerance import Places, Reference
from ksearch.operators.program import Role
from ksearch.types import Status

_SUBSET_BYTES = {"cuda": 32 << 20, "cpu": 8 << 20}
"""Of the input rows that a candidate is screened on."""

_SUBSET_PRODUCTS = {"cuda": 1 << 40, "cpu": 1 << 30}
"""Of a linear, so that its float64 references are there within seconds."""

_HOLD_CYCLES = 1_000_000
"""Half a millisecond of an H200, in which the host queues what follows."""

_DECOY = 4.0
"""Deviation of what inputs hold in the run before the first that counts: equal numbers may have the mean, or
the loss, of ordinary ones."""

_CASES_BYTES = {"cuda": 8 << 30, "cpu": 256 << 20}
"""Of one input over all cases of a screening, unless three of them are more."""

_FEW_ROWS = 2 * len(values.CYCLE) + 1
"""A case of a linear whose weight is odd has no more: most of its time goes to the weight."""

_FEW_ELEMENTS = 1 << 16
"""Enough of them to tell how well 16-bit results are rounded."""

_ALONE = ("uniform", "normal", "spike")
"""Kinds of rows that are tried one by one, too, where all rows come to one value."""

Run = Callable[[Sequence[Guarded], Sequence[Guarded]], None]
"""Starts the candidate on inputs and outputs."""


@dataclass(frozen=True, slots=True)
class _Case:
    """Inputs of a few rows, and what is right for them."""

    inputs: list[Guarded]
    pristine: list[torch.Tensor | None]
    """All memory of the inputs, guards included, as it was; None for a weight, which has a checksum."""
    outputs: tuple[list[Guarded], list[Guarded]]
    """For the first and the second run."""
    references: list[tuple[values.Part, list[Reference | Places]]]
    """For each part what is right for each output."""
    weight: weights.Shared | None = None
    odd: tuple[weights.Patch, ...] = ()
    """Elements of the weight that are something else while the case is run."""

    def modified(self) -> list[torch.Tensor]:
        """For each input with a copy, whether it was changed."""
        pairs = zip(self.inputs, self.pristine, strict=True)
        return [(tensor.raw != was).any() for tensor, was in pairs if was is not None]


class Subset:
    """Some rows of a workload, with everything that does not depend on the candidate made beforehand."""

    def __init__(self, problem: Problem, seed: int, at_most: int | None = None) -> None:
        """`at_most`: so many rows, where fewer than usual will do."""
        self._problem, self._seed = problem, seed
        workload = problem.workload
        width = max(workload.cols, workload.inner)
        most = max(3, _SUBSET_BYTES[problem.device.type] // (width * problem.dtype.itemsize))
        if workload.inner:
            products = _SUBSET_PRODUCTS[problem.device.type] // (workload.cols * workload.inner)
            most = max(_FEW_ROWS, min(most, products))
        most = most if at_most is None else min(most, at_most)
        # An odd number of them, so that the last of several rows at a time finds no others.
        self.rows = workload.rows if workload.rows <= most else most - 1 + most % 2
        if workload.together > 1:
            self.rows = min(workload.rows, max(1, most // workload.together) * workload.together)
        self._outputs = [problem.allocate_outputs(self.rows) for _ in range(2)]
        self._weights: list[weights.Shared] = []
        self._cases = self._linear_cases() if workload.inner else self._cases_of_rows(None)

    def check(self, run: Run, *, misaligned: bool) -> Finding:
        """Try the candidate on every case; `misaligned`: also on bases that are one element off."""
        evidence = [_Evidence() for _ in self._outputs[0]]
        modified: list[torch.Tensor] = []
        modified += self._distract(run, self._cases[0])
        for case in [*self._cases, self._misaligned] if misaligned else self._cases:
            with nullcontext() if case.weight is None else case.weight.patched(case.odd):
                for number, outputs in enumerate(case.outputs):
                    for output in outputs:
                        output.poison(number)
                    run(case.inputs, outputs)
            modified += case.modified()
            for each, one, other in zip(evidence, *case.outputs, strict=True):
                each.damaged += [one.damaged(), other.damaged()]
                each.compare(one.bits, other.bits, one.values.dtype)
            for part, references in case.references:
                facts = zip(evidence, case.outputs[0], references, self._problem.output_roles, strict=True)
                for each, one, reference, role in facts:
                    each.verdicts.append(reference.judge(_output_of(part, one.values, role)))
        used = [*self._weights, *([self._misaligned.weight] if misaligned else [])]
        modified += [weight.modified() for weight in used if weight is not None]
        return _conclude(modified, evidence)

    def _distract(self, run: Run, case: _Case) -> list[torch.Tensor]:
        """Run the candidate on other values in the same memory first, and let the device fall behind us.

        A kernel that keeps something from call to call would else be right twice: the two runs that are
        compared have the same inputs. And what it leaves to another stream than ours happens before the
        outputs are poisoned, so that it is gone, and not in time by luck. Gives whether inputs were modified:
        what is changed back and forth is as it was after the two runs that follow.
        """
        kinds = zip(case.inputs, case.pristine, self._problem.declared, strict=True)
        held = [(tensor, was, values.has_lines(each)) for tensor, was, each in kinds if was is not None]
        lines = [(tensor, was) for tensor, was, has_lines in held if has_lines]
        others = [(tensor, was) for tensor, was, has_lines in held if not has_lines]
        for (tensor, _), decoy in zip(lines, self._decoys, strict=True):
            tensor.values.copy_(decoy)
        run(case.inputs, case.outputs[0])
        pairs = zip(lines, self._decoys, strict=True)
        modified = [(tensor.values != decoy).any() for (tensor, _), decoy in pairs]
        modified += [(tensor.raw != was).any() for tensor, was in others]
        for tensor, was in lines:
            tensor.restore(was)
        if self._problem.device.type == "cuda":
            torch.cuda._sleep(_HOLD_CYCLES)
        return modified

    @cached_property
    def _decoys(self) -> list[torch.Tensor]:
        """For each input with lines of every kind."""
        case = self._cases[0]
        pairs = zip(case.inputs, self._problem.declared, strict=True)
        chosen = [tensor.values for tensor, declared in pairs if values.has_lines(declared)]
        seed = values.derive_seed(self._seed, "decoy")
        generator = torch.Generator(self._problem.device).manual_seed(seed)
        made = [torch.empty_like(each) for each in chosen]
        for each in made:
            if each.dtype is torch.bool:
                each.bernoulli_(0.5, generator=generator)
            else:
                each.normal_(0.0, _DECOY, generator=generator)
        return made

    def agree(self, one: Run, other: Run) -> bool:
        """Whether two candidates give the same bits on every case of the screening."""
        differs = []
        for case in self._cases:
            with nullcontext() if case.weight is None else case.weight.patched(case.odd):
                for run, outputs in zip((one, other), case.outputs, strict=True):
                    run(case.inputs, outputs)
            for first, second in zip(*case.outputs, strict=True):
                differs.append((first.bits != second.bits).any())
        return not bool(torch.stack(differs).any())

    def mend(self) -> bool:
        """Undo what a kernel did beside its outputs that is known to have done no more than that.

        False where that cannot be done: a linear's weight has no copy.
        """
        made = [*self._cases, *([self._misaligned] if "_misaligned" in self.__dict__ else [])]
        for case in made:
            for tensor, was in zip(case.inputs, case.pristine, strict=True):
                if was is not None:
                    tensor.raw.copy_(was)
            for output in (*case.outputs[0], *case.outputs[1]):
                output.mend()
        shared = [*self._weights, *(case.weight for case in made if case.weight is not None)]
        return not any(bool(weight.modified()) for weight in shared)

    def judges(self) -> list[torch.Tensor]:
        """All that verdicts depend on, and that no kernel is given."""
        references = [each for case in self._cases for _, found in case.references for each in found]
        return [tensor for each in references for tensor in each.tensors]

    def _cases_of_rows(self, weight: weights.Shared | None) -> list[_Case]:
        """Where there are fewer lines than kinds of line, it takes more inputs to see every kind."""
        lines = 1 if self._problem.alike else self._parts(self.rows)[0].lines
        firsts = range(0, len(values.CYCLE), lines)
        case_bytes = self.rows * self._problem.workload.cols * self._problem.dtype.itemsize
        most = _CASES_BYTES[self._problem.device.type] // max(case_bytes, 1)
        # Of rows that are too long to keep one of each kind, as many as there is room for.
        cases = [self._make_case(first, weight) for first in firsts[:: -(-len(firsts) // max(3, most))]]
        if self._problem.alike:  # a mean over rows hides what each of them lost
            cases += [self._make_case(values.CYCLE.index(kind), weight, rows=1) for kind in _ALONE]
        return cases

    def _linear_cases(self) -> list[_Case]:
        """Every kind of line beside an ordinary weight, some beside an odd one, and where the columns are
        reduced, all beside one that shows what a sum would hide."""
        problem, workload = self._problem, self._problem.workload
        reduced = Role.COLUMN in problem.output_roles
        mixed = self._make_weight(weights.fill_mixed)
        cases = self._cases_of_rows(mixed)
        shape = (workload.cols, workload.inner)
        for odd in weights.patches(shape, problem.dtype, problem.most, apart=reduced):
            cases.append(self._make_case(0, mixed, odd))
        mixed.wide = None
        self._weights.append(mixed)
        if reduced:
            alike = self._make_weight(weights.fill_alike)
            cases.append(self._make_case(0, alike))
            alike.wide = None
            self._weights.append(alike)
        return cases

    def _make_weight(self, fill: Callable[[torch.Tensor, torch.Generator], None]) -> weights.Shared:
        guarded = self._problem.allocate_weight()
        seed = values.derive_seed(self._seed, fill.__name__)
        fill(guarded.values, torch.Generator(guarded.values.device).manual_seed(seed))
        return weights.Shared.of(guarded)

    def _parts(self, rows: int) -> list[values.Part]:
        cols = self._problem.workload.cols
        workload = self._problem.workload
        return values.split(
            rows,
            cols,
            flat=self._problem.flat,
            max_elements=rows * cols,
            stride=workload.stride,
            segment=workload.segment,
        )

    def _make_case(
        self,
        first_kind: int,
        weight: weights.Shared | None,
        odd: tuple[weights.Patch, ...] = (),
        rows: int | None = None,
    ) -> _Case:
        problem = self._problem
        rows = rows or (min(self.rows, _FEW_ROWS) if odd else self.rows)
        parts = self._parts(rows)
        tensors = problem.allocate(rows, weight=None if weight is None else weight.guarded)
        for tensor, declared in zip(tensors, problem.declared, strict=True):
            if weight is None or tensor is not weight.guarded:
                problem.fill(tensor.values, declared, parts, self._seed, first_kind)
        references = []
        with nullcontext() if weight is None else weight.patched(odd):
            for part in parts:
                pairs = zip(tensors, problem.declared, strict=True)
                blocks = [part.take(tensor.values, declared.role) for tensor, declared in pairs]
                wide = None if weight is None else weight.wide
                references.append((part, problem.references(blocks, first_kind + part.first, wide)))
        outputs = self._outputs if rows == self.rows else [problem.allocate_outputs(rows) for _ in range(2)]
        pristine = _copies(tensors, weight)
        return _Case(tensors, pristine, (outputs[0], outputs[1]), references, weight, odd)

    @cached_property
    def _misaligned(self) -> _Case:
        """The first case again, off alignment. Made for the first candidate that takes such tensors."""
        problem, aligned = self._problem, self._cases[0]
        tensors = problem.allocate(self.rows, shift=1)
        for tensor, same in zip(tensors, aligned.inputs, strict=True):
            tensor.bits.copy_(same.bits)
        weight = None
        if aligned.weight is not None:
            moved = tensors[aligned.inputs.index(aligned.weight.guarded)]
            weight = weights.Shared(moved, None, moved.checksum())
        outputs = [problem.allocate_outputs(self.rows, shift=1) for _ in range(2)]
        pristine = _copies(tensors, weight)
        return _Case(tensors, pristine, (outputs[0], outputs[1]), aligned.references, weight)


def few_rows(problem: Problem, seed: int, all_rows: Subset) -> Subset:
    """A screening on no more rows than faults need to show: two of every kind, and one more.

    Of a linear all of them, because its weight would have to be held twice.
    """
    rows = max(_FEW_ROWS, _FEW_ELEMENTS // problem.workload.cols)
    if problem.workload.inner or all_rows.rows <= rows:
        return all_rows
    return Subset(problem, seed, rows)


def _copies(tensors: Sequence[Guarded], weight: weights.Shared | None) -> list[torch.Tensor | None]:
    shared = None if weight is None else weight.guarded
    return [None if tensor is shared else tensor.raw.clone() for tensor in tensors]


def _output_of(part: values.Part, output: torch.Tensor, role: Role) -> torch.Tensor:
    """This part of an output, as a matrix with a row for each line; one value for all lines has none."""
    return output.view(1, 1) if role is Role.SCALAR else part.take(output, role)


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
    modified = [tensor.damaged() for tensor in problem.inputs] + problem.weight_modified()
    wide = None if problem.weight is None else problem.weight.values.double()
    modified += [_check_part(problem, part, firsts, evidence, wide) for part in problem.parts()]
    return _conclude(modified, evidence)


def _check_part(
    problem: Problem,
    part: values.Part,
    firsts: Sequence[torch.Tensor],
    evidence: Sequence[_Evidence],
    wide: torch.Tensor | None,
) -> torch.Tensor:
    """Judge one part of both runs' outputs; whether its inputs were modified. Keeps nothing of its size."""
    blocks, modified = problem.make_again(part)
    references = problem.references(blocks, part.first, wide)
    outputs = zip(evidence, firsts, problem.outputs, references, problem.output_roles, strict=True)
    for each, first, output, reference, role in outputs:
        ours, dtype = _output_of(part, first, role), output.values.dtype
        each.compare(ours, _output_of(part, output.bits, role), dtype)
        each.verdicts.append(reference.judge(ours.view(dtype)))
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

"""Screening: runs a candidate on some rows with every kind of value, in memory that notices what it does.

What does not depend on the candidate is made once. The check of the whole workload is in `whole`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch

from ksearch.evaluate import inputs as values
from ksearch.evaluate import weights
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.findings import Evidence, conclude, give_up, output_of
from ksearch.evaluate.messages import Finding
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.tolerance import Places, Reference
from ksearch.operators.program import Role

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

_LONG_US = 1e5
_HOPELESS = 10.0
"""A candidate so many times slower than the best so far is not checked further, where that takes longer.
A third of the kernels for a sum of 1e8 floats leave it to 16 blocks at most, and each was called 41 times:
of 60 candidates the slowest took 3.7 s to check on an H200, all of them 7.3, and 1.1 since."""

_SURELY = 50.0
"""Below so many times the limit the first call is made again: it may have been late by itself, where much
else runs."""

Run = Callable[[Sequence[Guarded], Sequence[Guarded]], None]
"""Starts the candidate on inputs and outputs."""


class _Watched:
    """A candidate whose calls are waited for, and the time that the shortest took."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self._run, self._device = run, device
        self.took_us = math.inf

    def __call__(self, inputs: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
        began = self._now()
        self._run(inputs, outputs)
        self.took_us = min(self.took_us, (self._now() - began) * 1e6)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


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

    def check(self, run: Run, *, misaligned: bool, best_us: float | None = None) -> Finding:
        """Try the candidate on every case; `misaligned`: also on bases that are one element off. `best_us`:
        what the best so far takes; one that is hopelessly slower is a timeout."""
        evidence = [Evidence() for _ in self._outputs[0]]
        watched = _Watched(run, self._problem.device)
        modified = self._distract(watched, self._cases[0])
        if best_us is not None:
            limit_us = max(_HOPELESS * best_us, _LONG_US / (1 + 2 * len(self._cases)))
            if limit_us < watched.took_us < _SURELY * limit_us:
                modified += self._distract(watched, self._cases[0])
            if watched.took_us > limit_us:
                damaged = [output.damaged() for output in self._cases[0].outputs[0]]
                slower = watched.took_us / best_us
                why = f"one call took {watched.took_us / 1e3:.3g} ms, {slower:.0f} times the best so far"
                return give_up(modified, damaged, f"{why}: not checked further")
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
                    each.verdicts.append(reference.judge(output_of(part, one.values, role)))
        used = [*self._weights, *([self._misaligned.weight] if misaligned else [])]
        modified += [weight.modified() for weight in used if weight is not None]
        return conclude(modified, evidence)

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

"""What is wrong with what a candidate did: evidence, which stays on the device until all of it is there.

Apart from those who gather it, on some rows (`check`) and on all (`whole`), because both name the same
faults in the same order, and read them back from the device once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ksearch.evaluate import inputs as values
from ksearch.evaluate import tolerance
from ksearch.evaluate.buffers import POISONS
from ksearch.evaluate.messages import Finding
from ksearch.operators.program import Role
from ksearch.types import Status

_OUTSIDE, _MODIFIED = "wrote outside its output", "input modified"


@dataclass(slots=True)
class Evidence:
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


def output_of(part: values.Part, output: torch.Tensor, role: Role) -> torch.Tensor:
    """This part of an output, as a matrix with a row for each line; one value for all lines has none."""
    return output.view(1, 1) if role is Role.SCALAR else part.take(output, role)


def give_up(modified: Sequence[torch.Tensor], damaged: Sequence[torch.Tensor], why: str) -> Finding:
    """Of a candidate that takes too long to be tried further: what is seen of its damage, else why."""
    if bool(torch.stack(list(damaged)).any()):
        return Finding(Status.OUT_OF_BOUNDS, _OUTSIDE, healthy=False)
    if bool(torch.stack(list(modified)).any()):
        return Finding(Status.OUT_OF_BOUNDS, _MODIFIED, healthy=False)
    return Finding(Status.TIMEOUT, why)


def conclude(modified: Sequence[torch.Tensor], evidence: Sequence[Evidence]) -> Finding:
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
        message = told(_OUTSIDE, damaged.index(True))
        return Finding(Status.OUT_OF_BOUNDS, message, error, healthy=False)
    if is_modified:
        return Finding(Status.OUT_OF_BOUNDS, _MODIFIED, error, healthy=False)
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

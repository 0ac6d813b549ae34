"""The final check: every row of the workload, on values that no screening has used, in bounded memory.

Apart from screening (`check`), which keeps what it compares with from candidate to candidate: here that is
made anew, block by block, and none of it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ksearch.evaluate import inputs as values
from ksearch.evaluate.check import Run
from ksearch.evaluate.findings import Evidence, conclude, output_of
from ksearch.evaluate.messages import Finding
from ksearch.evaluate.problem import Problem


def check_whole(problem: Problem, run: Run) -> Finding:
    """Check every row of the workload, in blocks of bounded memory."""
    problem.fill_for_checking()
    evidence = [Evidence() for _ in problem.outputs]
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
    return conclude(modified, evidence)


def _check_part(
    problem: Problem,
    part: values.Part,
    firsts: Sequence[torch.Tensor],
    evidence: Sequence[Evidence],
    wide: torch.Tensor | None,
) -> torch.Tensor:
    """Judge one part of both runs' outputs; whether its inputs were modified. Keeps nothing of its size."""
    blocks, modified = problem.make_again(part)
    references = problem.references(blocks, part.first, wide)
    outputs = zip(evidence, firsts, problem.outputs, references, problem.output_roles, strict=True)
    for each, first, output, reference, role in outputs:
        ours, dtype = output_of(part, first, role), output.values.dtype
        each.compare(ours, output_of(part, output.bits, role), dtype)
        each.verdicts.append(reference.judge(ours.view(dtype)))
    return modified

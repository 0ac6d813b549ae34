"""How a winner does on other numbers of rows than it was tuned for, so that it can be used there.

A kernel takes any number of rows as an argument, and its rounding has been judged: screening and the final
check run two numbers of rows with every kind of value. What could still go wrong with a third is gross (rows
that nobody writes, a write too far), so here all rows are compared with PyTorch's on ordinary values, between
guard zones, and then both are timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from ksearch.evaluate import timing
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.messages import Nearby
from ksearch.evaluate.problem import Problem
from ksearch.operators.program import Role

_ALLOWED = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the largest value of an output: ten times what a kernel that is right differs from PyTorch by. Places
must be the same."""

_WITH_ROWS = (Role.FULL, Role.COLUMN, Role.LEFT, Role.INDEX, Role.MASK)
_ROUNDS = 7

Run = Callable[[Sequence[Guarded], Sequence[Guarded]], None]


def measure(
    problem: Problem, run: Run, rows: int, clock: timing.Clock, *, budget_s: float, seed: int
) -> Nearby:
    """The candidate that `run` starts, on that many rows of the problem's own values."""
    problem.fill_for_timing()
    tensors = [
        _of_rows(problem, place, rows) if declared.role in _WITH_ROWS else held
        for place, (held, declared) in enumerate(zip(problem.inputs, problem.declared, strict=True))
    ]
    outputs = problem.allocate_outputs(rows)
    for output in outputs:
        output.poison(0)
    run(tensors, outputs)
    if not _agrees(outputs, problem.results(tensors, rows)):
        return Nearby(rows, 0.0)
    calls = [lambda: run(tensors, outputs), problem.baseline_on(tensors, problem.matrices.shape_of(rows))]
    ours, theirs = timing.race(clock, calls, budget_s=budget_s, seed=seed, rounds=_ROUNDS)
    return Nearby(rows, statistics.median(theirs) / statistics.median(ours))


def _of_rows(problem: Problem, place: int, rows: int) -> Guarded:
    """An input's own rows, from the first on and again from the first, in memory of its own."""
    held = problem.inputs[place].values
    made = Guarded((rows, held.shape[1]), held.dtype, problem.device)
    for start in range(0, rows, held.shape[0]):
        count = min(held.shape[0], rows - start)
        made.values[start : start + count].copy_(held[:count])
    return made


def _agrees(outputs: Sequence[Guarded], wanted: Sequence[torch.Tensor]) -> bool:
    facts = []
    for output, right in zip(outputs, wanted, strict=True):
        ours, theirs = output.values, right.view(output.values.shape)
        allowed = _ALLOWED.get(ours.dtype, 0.0) * theirs.abs().max().float()
        facts += [(ours - theirs).abs().max().float() <= allowed, ~output.damaged()]  # NaN is not less
    return bool(torch.stack(facts).all())


def bytes_of(problem: Problem, rows: int) -> int:
    """What measuring takes, PyTorch's results and what it needs for these included."""
    workload = problem.workload
    per_row = sum(
        workload.inner if declared.role is Role.LEFT else workload.cols
        for declared in problem.declared
        if declared.role in (Role.FULL, Role.LEFT)
    )
    return rows * (per_row + 4 * len(problem.outputs) * workload.cols) * workload.itemsize

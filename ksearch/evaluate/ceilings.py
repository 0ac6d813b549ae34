"""What no kernel can be much faster than: calls that are timed beside candidates, in the same rounds.

Apart from the problem, because they compute nothing of the op and take memory of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ksearch import packing
from ksearch.evaluate import weights
from ksearch.evaluate.problem import Problem
from ksearch.operators.program import Role

_EVEN = 1 << 16
"""Copies are of a multiple of that many elements: of 8,388,736 float32 one took 24.6 us, of 8,388,608
22.0."""

_CEILING_BYTES = 1 << 30
"""Largest copy made only to measure the ceiling; for more bytes its time is scaled."""


def ceilings(problem: Problem) -> list[tuple[Callable[[], object], float]]:
    """What no kernel can be much faster than, each with the factor for its time; the slowest counts.

    A copy that moves the bytes any kernel must move; of a linear also PyTorch's product alone.
    """
    return [_copy(problem), *([_product(problem)] if problem.workload.inner else [])]


def _copy(problem: Problem) -> tuple[Callable[[], object], float]:
    tensors = [tensor.values for tensor in (*problem.inputs, *problem.outputs)]
    half = sum(tensor.nbytes for tensor in tensors) / 2 / problem.dtype.itemsize
    source, out = tensors[0], problem.outputs[0].values
    full = [declared for declared in problem.declared if declared.role is Role.FULL]
    # Weights are a small part of it.
    if len(full) == 1 and out.shape == source.shape and len(problem.outputs) == 1:
        return lambda: out.copy_(source), half / out.numel()
    size = min(round(half), _CEILING_BYTES // problem.dtype.itemsize)
    size -= size % _EVEN if size > _EVEN else 0
    source = torch.zeros(size, dtype=problem.dtype, device=problem.device)
    copy = torch.zeros_like(source)
    return lambda: copy.copy_(source), half / size


def _product(problem: Problem) -> tuple[Callable[[], object], float]:
    """In the workload's dtype and under its policy; for float32 under `strict` on a GPU three in float16,
    and of a prepacked workload on a CPU with the weight that PyTorch reordered.

    Tensor cores give the accuracy of float32 by splitting each operand in two, which leaves three
    products of halves: the least that is known.
    """
    workload, device = problem.workload, problem.device
    is_split = problem.dtype is torch.float32 and workload.policy == "strict"
    dtype, times = (torch.float16, 3.0) if is_split and device.type == "cuda" else (problem.dtype, 1.0)
    rows, cols, inner = workload.rows, workload.cols, workload.inner
    left = torch.empty((rows, inner), dtype=dtype, device=device).uniform_(0.0, 1.0)
    right = torch.empty((cols, inner), dtype=dtype, device=device)
    weights.fill_initial(right, torch.Generator(device).manual_seed(problem.seed))
    product = torch.empty((rows, cols), dtype=dtype, device=device)
    if workload.is_prepacked and device.type == "cpu":
        packed = packing.reordered(right, rows)
        return lambda: packing.product(left, packed), times
    return lambda: torch.mm(left, right.t(), out=product), times

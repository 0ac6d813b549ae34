"""The workload as tensors on the device: what candidates are run on, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ksearch import operators
from ksearch.errors import BadShape, UsageError
from ksearch.evaluate import inputs
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.messages import Job
from ksearch.evaluate.tolerance import Reference, references
from ksearch.operators.program import Role, as_tuple

_PART_BYTES = {"cuda": 64 << 20, "cpu": 8 << 20}
"""Of the blocks in which the whole workload is checked; float64 needs 8 to 16 times that beside one."""

_EVEN = 1 << 16
"""Copies are of a multiple of that many elements: of 8,388,736 float32 one took 24.6 us, of 8,388,608
22.0."""

_CEILING_BYTES = 1 << 30
"""Largest copy made only to measure the ceiling; for more bytes its time is scaled."""


class Problem:
    """One workload on one device, its inputs and its outputs. Raises BadShape where that does not fit."""

    def __init__(self, job: Job) -> None:
        workload, target = job.workload, job.target
        self.workload = workload
        self.op = operators.resolve(job.op)
        self.dtype: torch.dtype = getattr(torch, workload.dtype)
        self.device = torch.device("cpu") if target.backend == "cpu" else torch.device("cuda", target.index)
        # What an op with its own template does is not known, so its rows must stay whole.
        traced = self.op.template_op is None
        options = dict(workload.options)
        program = self.op.program(**options)
        self.declared = self.op.inputs_for(options)
        """What the inputs are called, and their roles."""
        self.pointwise = traced and program.family == "pointwise"
        self.flat = (
            self.pointwise
            and all(declared.role in (Role.FULL, Role.SCALAR) for declared in self.declared)
            and not any(node.op == "cols" for node in program.nodes)
        )
        """The op treats every element alike, wherever it stands."""
        self.most = inputs.largest(self.dtype, workload.cols, pointwise=self.pointwise)
        """The largest value that inputs hold when results are checked."""
        self._seed = job.seed
        self._count = len(program.outputs)
        self._check_memory(job)
        self.inputs = self.allocate(workload.rows)
        self.outputs = self.allocate_outputs(workload.rows)
        self._holds = ""

    def allocate(self, rows: int, shift: int = 0) -> list[Guarded]:
        """Inputs of the op for that many rows, not filled."""
        cols = self.workload.cols
        shapes = {Role.FULL: (rows, cols), Role.ROW: (1, cols), Role.COLUMN: (rows, 1), Role.SCALAR: (1, 1)}
        return [Guarded(shapes[declared.role], self.dtype, self.device, shift) for declared in self.declared]

    def allocate_outputs(self, rows: int, shift: int = 0) -> list[Guarded]:
        """Outputs for that many rows; with a shift, each is off alignment by another distance."""
        shape = (rows, self.workload.cols)
        return [Guarded(shape, self.dtype, self.device, shift * (1 + k)) for k in range(self._count)]

    def function(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """PyTorch's answer, in the dtype of the tensors.

        Raises UsageError where an own template's reference gives another number of them than its class says.
        """
        results = as_tuple(self.op.reference(*tensors, **dict(self.workload.options)))
        if len(results) != self._count:
            raise UsageError(
                f"{self.op.name}: reference gives {len(results)} tensor(s), and `outputs` of its class is "
                f"{self._count}: make them agree"
            )
        return results

    def references(self, blocks: Sequence[torch.Tensor], first_kind: int) -> list[Reference]:
        """What is right for each output; the inputs' first line is of that place in the cycle of kinds."""
        return references(self.function, blocks, pointwise=self.pointwise, first_kind=first_kind)

    def parts(self) -> list[inputs.Part]:
        """The whole workload in blocks small enough to be checked in float64."""
        most = _PART_BYTES[self.device.type] // self.dtype.itemsize // self._count
        return inputs.split(self.workload.rows, self.workload.cols, flat=self.flat, max_elements=most)

    # The values that the whole inputs hold

    def fill_for_timing(self) -> None:
        """Ordinary values: denormals slow a CPU down."""
        if self._holds != "timing":
            for tensor, declared in zip(self.inputs, self.declared, strict=True):
                inputs.fill_ordinary(tensor.values, declared, self._seed)
            self._holds = "timing"

    def fill_for_checking(self) -> None:
        """Every kind of line, from a seed that no screening has used."""
        if self._holds != "checking":
            for tensor, declared in zip(self.inputs, self.declared, strict=True):
                inputs.fill(tensor.values, declared, self.parts(), self._check_seed, most=self.most)
            self._holds = "checking"

    def make_again(self, part: inputs.Part) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One part of what `fill_for_checking` wrote, made anew; and whether the inputs differ from it."""
        blocks, differs = [], []
        for declared, held in zip(self.declared, self.inputs, strict=True):
            if declared.role is Role.FULL:
                now = part.take(held.values, declared.role)
                block = torch.empty_like(now)
                inputs.fill_part(block, declared, part, self._check_seed, most=self.most)
            else:
                now, block = held.values, torch.empty_like(held.values)
                inputs.fill_ordinary(block, declared, self._check_seed)
            integer = held.bits.dtype
            differs.append((now.view(integer) != block.view(integer)).any())
            blocks.append(block if declared.role is Role.FULL else part.take(block, declared.role))
        return blocks, torch.stack(differs).any()

    @property
    def _check_seed(self) -> int:
        return inputs.derive_seed(self._seed, "whole")

    # What candidates are compared with

    def baseline(self) -> Callable[[], None]:
        """PyTorch's function on the whole workload; its result is freed at once, for the next to reuse."""
        shapes = self.op.input_shapes(self.workload.shape, dict(self.workload.options))
        tensors = [tensor.values.view(shape) for tensor, shape in zip(self.inputs, shapes, strict=True)]

        def run() -> None:
            self.function(*tensors)

        return run

    def ceiling(self) -> tuple[Callable[[], object], float]:
        """A copy that moves the bytes any kernel must move, and the factor for its time."""
        tensors = [tensor.values for tensor in (*self.inputs, *self.outputs)]
        half = sum(tensor.numel() for tensor in tensors) / 2
        source, out = tensors[0], self.outputs[0].values
        full = [declared for declared in self.declared if declared.role is Role.FULL]
        if len(full) == len(self.outputs) == 1:  # weights and the like are a small part of it
            return lambda: out.copy_(source), half / out.numel()
        size = min(round(half), _CEILING_BYTES // self.dtype.itemsize)
        size -= size % _EVEN if size > _EVEN else 0
        source = torch.zeros(size, dtype=self.dtype, device=self.device)
        copy = torch.zeros_like(source)
        return lambda: copy.copy_(source), half / size

    def _check_memory(self, job: Job) -> None:
        """Refuse before allocating: a machine that runs out of main memory kills whom it likes."""
        limits = [limit for limit in (job.memory_limit_bytes, job.target.memory_bytes) if limit]
        shapes = self.op.input_shapes(self.workload.shape, dict(self.workload.options))
        elements = sum(torch.Size(shape).numel() for shape in shapes) + 2 * self._count * self.workload.numel
        needed = elements * self.workload.itemsize
        if limits and needed > min(limits):
            raise BadShape(
                f"{self.workload} needs at least {needed / 1e9:.1f} GB while it is tuned (inputs, results, "
                f"PyTorch's results), and {min(limits) / 1e9:.1f} GB may be used of {job.target.device}; "
                "choose a smaller shape"
            )

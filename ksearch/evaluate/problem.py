"""The workload as tensors on the device: what candidates are run on, and what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ksearch import operators
from ksearch.errors import BadShape, UsageError
from ksearch.evaluate import inputs
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.matrices import Matrices
from ksearch.evaluate.messages import Job
from ksearch.evaluate.references import references
from ksearch.evaluate.tolerance import Places, Reference
from ksearch.operators.program import Input, Program, Role, as_tuple
from ksearch.types import Workload

_PART_BYTES = {"cuda": 64 << 20, "cpu": 8 << 20}
"""Of the blocks in which the whole workload is checked; float64 needs 8 to 16 times that beside one."""

_LINEAR_PART_ELEMENTS = {"cuda": 1 << 25, "cpu": 1 << 21}
"""The same of a linear, whose every part takes a product with the whole weight in float64: few parts, of some
ten tensors of 256 MB."""


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
        inner = workload.inner
        is_flat = self.pointwise and not program.has_channels  # the order of whose factors is up to PyTorch
        self.most = inputs.largest(self.dtype, workload.cols, pointwise=is_flat, inner=inner)
        """The largest value that inputs hold when results are checked."""
        self.output_roles = list(program.output_roles)
        self.alike = program.is_total
        """All lines of an input must be of one kind: the result is one value, and a NaN of one line hides
        what becomes of the others."""
        self.matrices = Matrices(self.op, workload, program, self.declared)
        self._output_dtypes = [getattr(torch, name) for name in program.output_dtypes(workload.dtype)]
        self._places = {
            item.name: inputs.Places(workload.cols, program.marks(item.name)) for item in self.declared
        }
        self._has_products = any(node.op.startswith(("reduce_prod", "scan_prod")) for node in program.nodes)
        self.weight_place = next((k for k, each in enumerate(self.declared) if each.role is Role.RIGHT), None)
        """That of a linear's weight among the inputs."""
        self._is_alone = program.family in ("reduction", "strided", "linear") and all(program.per_row)
        self._levels = _levels(program, workload) if inner or self._is_alone else None
        self.seed = job.seed
        """Of all that is drawn for it."""
        self._count = len(program.outputs)
        self._check_memory(job)
        self.inputs = self.allocate(workload.rows)
        self.outputs = self.allocate_outputs(workload.rows)
        self._holds = ""
        self._checksum: torch.Tensor | None = None

    def allocate(self, rows: int, shift: int = 0, weight: Guarded | None = None) -> list[Guarded]:
        """Inputs of the op for that many rows, not filled; a linear's weight may be one that is there."""
        given = {self.weight_place: weight} if weight is not None else {}
        return [
            given.get(k)
            or Guarded(
                self.matrices.of(declared.role, rows),
                getattr(torch, declared.dtype(self.workload.dtype)),
                self.device,
                shift,
            )
            for k, declared in enumerate(self.declared)
        ]

    def allocate_weight(self) -> Guarded:
        """A linear's weight, not filled."""
        return Guarded(self.matrices.of(Role.RIGHT, self.workload.rows), self.dtype, self.device)

    def allocate_outputs(self, rows: int, shift: int = 0) -> list[Guarded]:
        """Outputs for that many rows; with a shift, each is off alignment by another distance."""
        shapes = [self.matrices.of(role, rows) for role in self.output_roles]
        return [
            Guarded(shape, dtype, self.device, shift * (1 + k))
            for k, (shape, dtype) in enumerate(zip(shapes, self._output_dtypes, strict=True))
        ]

    def fill(
        self,
        tensor: torch.Tensor,
        declared: Input,
        parts: Sequence[inputs.Part],
        seed: int,
        first_kind: int = 0,
    ) -> None:
        """Write the values of one input that results are checked on."""
        inputs.fill(
            tensor, declared, parts, seed, most=self.most, first_kind=first_kind, alike=self.alike,
            places=self._places[declared.name],
        )  # fmt: skip
        if self._has_products and declared.role is Role.FULL:
            # Part by part, as `make_again` does: a logarithm differs by where in a vector an element stands.
            for part in parts:
                lines = part.take(tensor, declared.role)
                inputs.tame(lines, self.workload.cols)
                if not part.is_whole:
                    part.put(tensor, lines)

    def function(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """PyTorch's answer, in the dtype of the tensors; one value a row as a column.

        Raises UsageError where an own template's reference gives another number of them than its class says.
        """
        if self.matrices.has_dims:
            tensors = tuple(self.matrices.in_dims(tensors))
        return self._answer(tensors)

    def _answer(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The same of tensors in the shapes that the op's function wants."""
        results = as_tuple(self.op.reference(*tensors, **dict(self.workload.options)))
        if len(results) != self._count:
            raise UsageError(
                f"{self.op.name}: reference gives {len(results)} tensor(s), and `outputs` of its class is "
                f"{self._count}: make them agree"
            )
        pairs = zip(results, self.output_roles, strict=True)
        return tuple([self.matrices.of_result(each, role) for each, role in pairs])

    def references(
        self, blocks: Sequence[torch.Tensor], first_kind: int, wide: torch.Tensor | None = None
    ) -> list[Reference | Places]:
        """What is right for each output; the inputs' first line is of that place in the cycle of kinds.

        `wide`: a linear's weight in float64.
        """
        return references(
            self.function,
            blocks,
            # Channels broadcast in other ways than rows.
            pointwise=self.pointwise and not self.matrices.has_dims,
            first_kind=first_kind,
            levels=self._levels,
            alone=self._is_alone,
            wide={} if wide is None or self.weight_place is None else {self.weight_place: wide},
        )

    @property
    def weight(self) -> Guarded | None:
        """That of a linear, of the whole inputs."""
        return None if self.weight_place is None else self.inputs[self.weight_place]

    def parts(self) -> list[inputs.Part]:
        """The whole workload in blocks small enough to be checked in float64."""
        if self.workload.inner:
            lines = _LINEAR_PART_ELEMENTS[self.device.type] // max(self.workload.cols, self.workload.inner)
            most = max(1, lines) * self.workload.cols
            return inputs.split(self.workload.rows, self.workload.cols, flat=False, max_elements=most)
        if self.alike:
            rows, cols = self.workload.rows, self.workload.cols
            return inputs.split(rows, cols, flat=False, max_elements=rows * cols)
        most = _PART_BYTES[self.device.type] // self.dtype.itemsize // self._count
        return inputs.split(
            self.workload.rows,
            self.workload.cols,
            flat=self.flat,
            max_elements=most,
            stride=self.workload.stride,
            together=self.workload.together,
            segment=self.workload.segment,
        )

    # The values that the whole inputs hold

    def fill_for_timing(self) -> None:
        """Ordinary values: denormals slow a CPU down."""
        if self._holds != "timing":
            for tensor, declared in zip(self.inputs, self.declared, strict=True):
                inputs.fill_ordinary(tensor.values, declared, self.seed, self._places[declared.name])
            self._holds = "timing"

    def fill_for_checking(self) -> None:
        """Every kind of line, from a seed that no screening has used."""
        if self._holds != "checking":
            for tensor, declared in zip(self.inputs, self.declared, strict=True):
                self.fill(tensor.values, declared, self.parts(), self._check_seed)
            self._checksum = None if self.weight is None else self.weight.checksum()
            self._holds = "checking"

    def weight_modified(self) -> list[torch.Tensor]:
        """Whether a linear's weight is not what `fill_for_checking` wrote; empty where there is none."""
        if self.weight is None or self._checksum is None:
            return []
        return [self.weight.checksum().ne(self._checksum)]

    def make_again(self, part: inputs.Part) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One part of what `fill_for_checking` wrote, made anew; and whether the inputs differ from it.

        But for a linear's weight, which is as it is: see `weight_modified`.
        """
        blocks, differs = [], []
        for declared, held in zip(self.declared, self.inputs, strict=True):
            if declared.role is Role.RIGHT:
                blocks.append(held.values)
                continue
            if inputs.has_lines(declared):
                now = part.take(held.values, declared.role)
                block = torch.empty_like(now)
                inputs.fill_part(block, declared, part, self._check_seed, most=self.most, alike=self.alike)
                if self._has_products and declared.role is Role.FULL:
                    inputs.tame(block, self.workload.cols)
            else:
                now, block = held.values, torch.empty_like(held.values)
                self.fill(block, declared, (), self._check_seed)
            integer = held.bits.dtype
            differs.append((now.view(integer) != block.view(integer)).any())
            blocks.append(block if inputs.has_lines(declared) else part.take(block, declared.role))
        return blocks, torch.stack(differs).any()

    @property
    def _check_seed(self) -> int:
        return inputs.derive_seed(self.seed, "whole")

    # What candidates are compared with

    def baseline(self) -> Callable[[], None]:
        """PyTorch's function on the whole workload; its result is freed at once, for the next to reuse."""
        return self.baseline_on(self.inputs, self.workload.shape)

    def baseline_on(self, inputs: Sequence[Guarded], shape: tuple[int, ...]) -> Callable[[], None]:
        """The same on other inputs, of a workload of that shape."""
        tensors = self.matrices.views(inputs, shape)
        call = self.op.caller(dict(self.workload.options))

        def run() -> None:
            call(*tensors)

        return run

    def results(self, inputs: Sequence[Guarded], rows: int) -> tuple[torch.Tensor, ...]:
        """PyTorch's answer for that many rows."""
        return self._answer(self.matrices.views(inputs, self.matrices.shape_of(rows)))

    def _check_memory(self, job: Job) -> None:
        """Refuse before allocating: a machine that runs out of main memory kills whom it likes."""
        limits = [limit for limit in (job.memory_limit_bytes, job.target.memory_bytes) if limit]
        workload = self.workload
        shapes = self.op.input_shapes(workload.shape, dict(workload.options), workload.inner)
        elements = sum(torch.Size(shape).numel() for shape in shapes)
        elements += 2 * sum(math.prod(self.matrices.of(role, workload.rows)) for role in self.output_roles)
        needed = elements * workload.itemsize
        # A linear's weight once more for screening, again with equal rows, for the ceiling, in float64; and
        # packed, in up to three 16-bit or two TF32 terms.
        copies = 2 + (Role.COLUMN in self.output_roles) + 2 * workload.is_prepacked
        needed += workload.cols * workload.inner * (copies * workload.itemsize + 8)
        if limits and needed > min(limits):
            raise BadShape(
                f"{workload} needs at least {needed / 1e9:.1f} GB while it is tuned (inputs, results, "
                f"PyTorch's results), and {min(limits) / 1e9:.1f} GB may be used of {job.target.device}; "
                "choose a smaller shape"
            )


def _levels(program: Program, workload: Workload) -> float:
    """How often the sums of an op with a linear, or of one that reduces its rows, round at least.

    PyTorch's own error tells of such long sums; a quarter of the additions is what one line's luck may be.
    """
    if not workload.inner:
        return math.log2(workload.cols)
    levels = math.log2(workload.inner) / 4
    if all(program.per_row):  # a sum over the columns hides what the products lost: no more than needed
        return levels + math.log2(workload.cols) / 4
    return levels + (math.log2(workload.cols) if program.epilogue.family == "rowwise" else 0.0)

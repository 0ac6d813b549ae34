"""How an op's function sees tensors, and how kernels and the check do: with all their dims, or as matrices.

Apart from the problem, because it is about shapes alone: which rows lie side by side, or in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ksearch.evaluate.buffers import Guarded
from ksearch.operators.definition import Op
from ksearch.operators.program import Input, Program, Role
from ksearch.types import CHANNELS, CONTIGUOUS, Workload


class Matrices:
    """Tensors of one workload as rows and columns, and back."""

    def __init__(self, op: Op, workload: Workload, program: Program, declared: Sequence[Input]) -> None:
        self._op, self._workload, self._declared = op, workload, declared
        self._over = program.over
        self.has_dims = program.layout != CONTIGUOUS
        """The op's function wants to see more than rows and columns."""

    def of(self, role: Role, rows: int) -> tuple[int, int]:
        """A tensor of that role as rows and columns."""
        cols, inner = self._workload.cols, self._workload.inner
        shapes = {
            Role.FULL: (rows, cols), Role.ROW: (1, cols), Role.COLUMN: (rows, 1), Role.SCALAR: (1, 1),
            Role.LEFT: (rows, inner), Role.RIGHT: (cols, inner), Role.INDEX: (rows, 1),
            Role.CHANNEL: (1, self._workload.channels), Role.MASK: (rows, cols),
        }  # fmt: skip
        return shapes[role]

    def of_result(self, result: torch.Tensor, role: Role) -> torch.Tensor:
        """What the function gave, as rows and columns; one value a row as a column."""
        if role is not Role.FULL:
            return result.reshape(-1, 1)
        if not self.has_dims:
            return result
        if segment := self._workload.segment:
            pieces = self._workload.cols // segment
            return result.reshape(pieces, -1, segment).transpose(0, 1).reshape(-1, self._workload.cols)
        cols, across = self._workload.cols, min(result.numel() // self._workload.cols, self._workload.stride)
        return result.reshape(-1, cols, across).transpose(1, 2).reshape(-1, cols)

    def in_dims(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Matrices of some rows with the dims that make up a row apart, as the function wants them."""
        rows, cols = tensors[0].numel() // self._workload.cols, self._workload.cols
        shapes = self._input_shapes(self.shape_of(rows))
        across = min(rows, self._workload.stride)
        if segment := self._workload.segment:
            tensors = [
                tensor.view(rows, -1, segment).transpose(0, 1) if declared.role is Role.FULL else tensor
                for tensor, declared in zip(tensors, self._declared, strict=True)
            ]
        if across > 1:  # rows that lie side by side in memory
            tensors = [
                tensor.view(-1, across, cols).transpose(1, 2)
                if declared.role in (Role.FULL, Role.MASK)
                else tensor
                for tensor, declared in zip(tensors, self._declared, strict=True)
            ]
        return [tensor.reshape(shape) for tensor, shape in zip(tensors, shapes, strict=True)]

    def shape_of(self, rows: int) -> tuple[int, ...]:
        """Of the full tensors with that many rows."""
        shape, stride = self._workload.shape, self._workload.stride
        if not self._over:
            return shape
        if self._workload.segment:
            return (shape[0], rows, *shape[2:])
        if self._workload.layout == CHANNELS or self._workload.groups:
            return (rows // self._workload.together, *shape[1:])
        first, after = len(shape) + self._over[0], len(shape) + self._over[-1] + 1
        inner = shape[after:] if rows >= stride else (*(1,) * (len(shape) - after - 1), rows)
        return (-(-rows // stride), *shape[first:after], *inner)

    def views(self, inputs: Sequence[Guarded], shape: tuple[int, ...]) -> list[torch.Tensor]:
        """Inputs as the function wants them, for full tensors of that shape; no copies."""
        shapes = self._input_shapes(shape)
        return [tensor.values.view(each) for tensor, each in zip(inputs, shapes, strict=True)]

    def _input_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        return self._op.input_shapes(shape, dict(self._workload.options), self._workload.inner)

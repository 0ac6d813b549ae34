"""One call of a kernel: is this what it was tuned for, then start it on raw pointers.

A kernel is tuned for one shape, dtype, device and alignment and believes what it is told, so everything is
checked on every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad

from ksearch.backends import Kernel, LaunchError
from ksearch.operators.program import as_tuple
from ksearch.runtime.outputs import Outputs, as_result
from ksearch.types import Launch, Target, Workload

if TYPE_CHECKING:
    from ksearch.operators import Op

_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Other classes (fake, distributed, quantized tensors) are more than their memory."""


class KernelCall:
    """One kernel with everything that a call is checked against."""

    def __init__(self, op: Op, kernel: Kernel, launch: Launch, workload: Workload, target: Target) -> None:
        self._kernel = kernel
        self._rows = workload.rows
        options = dict(workload.options)
        self._shapes = tuple(
            tuple(map(torch.Size, shapes)) for shapes in op.accepted_shapes(workload.shape, options)
        )
        self._count = len(op.program(**options).outputs)
        self._dtype: torch.dtype = getattr(torch, workload.dtype)
        self._index = target.index if target.backend == "cuda" else None
        self._device = torch.device("cpu" if self._index is None else f"cuda:{self._index}")
        self._alignment = launch.alignment
        self._stream = _raw_stream()

    def __call__(self, tensors: tuple[torch.Tensor, ...], out: Outputs | None) -> Outputs | str:
        """The result, or why the kernel cannot give it."""
        if len(tensors) != len(self._shapes):
            return f"it takes {len(self._shapes)} tensor(s)"
        try:
            for tensor, shapes in zip(tensors, self._shapes, strict=True):
                if reason := self._misfit(tensor, shapes):
                    return f"an input {reason}"
            if forward_ad._current_level >= 0:
                return "forward-mode derivatives are being taken"
            if out is None:
                results = tuple([torch.empty_like(tensors[0]) for _ in range(self._count)])
            else:
                results = as_tuple(out)
                if reason := self._misfit_of_out(results):
                    return reason
            pointers = tuple([tensor.data_ptr() for tensor in (*tensors, *results)])
        except RuntimeError:  # torch has no memory, shape or strides to tell: inside vmap, sparse, nested
            return "a tensor has no memory of its own"
        for pointer in pointers:
            if pointer % self._alignment:
                return f"a tensor does not start at a multiple of {self._alignment} bytes"
            if not pointer:  # inside torch.func.functionalize
                return "a tensor has no memory of its own"
        if out is not None:
            if reason := _overlap(tensors, results, pointers):
                return reason
            for result in results:
                torch.autograd.graph.increment_version(result)  # autograd must see that it was written
        try:
            self._launch(pointers)
        except LaunchError as error:
            return f"the kernel did not start: {error}"
        return as_result(results)

    def _misfit_of_out(self, results: tuple[torch.Tensor, ...]) -> str:
        """Why the kernel cannot write into these; empty where it can."""
        if len(results) != self._count:
            return f"out is not {self._count} tensor(s)"
        for number, result in enumerate(results):
            if reason := self._misfit(result, self._shapes[0]):
                return f"out[{number}] {reason}" if self._count > 1 else f"out {reason}"
        return ""

    def _misfit(self, tensor: torch.Tensor, shapes: tuple[torch.Size, ...]) -> str:
        """Why the kernel cannot take this tensor; empty where it can."""
        if type(tensor) not in _PLAIN:
            return "is not a plain tensor"
        if tensor.shape not in shapes:
            return f"is not of shape {tuple(shapes[0])}, for which the kernel was tuned"
        if tensor.dtype is not self._dtype:
            return f"is not {self._dtype}"
        if tensor.device != self._device:
            return f"is not on {self._device}"
        if not tensor.is_contiguous():
            return "is not contiguous"
        if tensor.is_neg():
            return "is negated when it is read, as conj().imag is"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "requires a gradient, which kernels do not give"
        return ""

    def _launch(self, pointers: tuple[int, ...]) -> None:
        index = self._index
        if index is None:
            self._kernel(pointers, self._rows, 0)
        elif torch.cuda.current_device() == index:
            self._kernel(pointers, self._rows, self._stream(index))
        else:
            with torch.cuda.device(index):
                self._kernel(pointers, self._rows, self._stream(index))


def _overlap(
    tensors: tuple[torch.Tensor, ...], results: tuple[torch.Tensor, ...], pointers: tuple[int, ...]
) -> str:
    """Whether a result shares memory with an input or another result; empty where none does."""
    sizes = [tensor.nbytes for tensor in (*tensors, *results)]
    for k in range(len(tensors), len(pointers)):
        for j in range(k):
            if pointers[j] < pointers[k] + sizes[k] and pointers[k] < pointers[j] + sizes[j]:
                return "out overlaps an input" if j < len(tensors) else "two tensors of out overlap"
    return ""


def _raw_stream() -> Callable[[int], int]:
    """The caller's current stream as the driver's handle, by torch's private short cut where it exists."""
    private: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return private or (lambda index: torch.cuda.current_stream(index).cuda_stream)

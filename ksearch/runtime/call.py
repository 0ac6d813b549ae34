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
        self._shapes = tuple(torch.Size(shape) for shape in op.input_shapes(workload.shape))
        self._dtype: torch.dtype = getattr(torch, workload.dtype)
        self._index = target.index if target.backend == "cuda" else None
        self._device = torch.device("cpu" if self._index is None else f"cuda:{self._index}")
        self._alignment = launch.alignment
        self._stream = _raw_stream()

    def __call__(self, tensors: tuple[torch.Tensor, ...], out: torch.Tensor | None) -> torch.Tensor | str:
        """The result, or why the kernel cannot give it."""
        if len(tensors) != len(self._shapes):
            return f"it takes {len(self._shapes)} tensor(s)"
        for tensor, shape in zip(tensors, self._shapes, strict=True):
            if reason := self._misfit(tensor, shape):
                return f"an input {reason}"
        if forward_ad._current_level >= 0:
            return "forward-mode derivatives are being taken"
        if out is not None and (reason := self._misfit(out, self._shapes[0])):
            return f"out {reason}"
        result = torch.empty_like(tensors[0]) if out is None else out
        try:
            pointers = tuple([tensor.data_ptr() for tensor in tensors] + [result.data_ptr()])
        except RuntimeError:  # inside torch.func.vmap or grad: torch says that there is no storage
            return "a tensor has no memory of its own"
        for pointer in pointers:
            if pointer % self._alignment:
                return f"a tensor does not start at a multiple of {self._alignment} bytes"
        if out is not None:
            end = pointers[-1] + out.nbytes
            for tensor, start in zip(tensors, pointers, strict=False):
                if start < end and pointers[-1] < start + tensor.nbytes:
                    return "out overlaps an input"
            torch.autograd.graph.increment_version(out)  # autograd must see that it was written
        try:
            self._launch(pointers)
        except LaunchError as error:
            return f"the kernel did not start: {error}"
        return result

    def _misfit(self, tensor: torch.Tensor, shape: torch.Size) -> str:
        """Why the kernel cannot take this tensor; empty where it can."""
        if type(tensor) not in _PLAIN:
            return "is not a plain tensor"
        if tensor.shape != shape:
            return f"is not of shape {tuple(shape)}, for which the kernel was tuned"
        if tensor.dtype is not self._dtype:
            return f"is not {self._dtype}"
        if tensor.device != self._device:
            return f"is not on {self._device}"
        if not tensor.is_contiguous():
            return "is not contiguous"
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


def _raw_stream() -> Callable[[int], int]:
    """The caller's current stream as the driver's handle, by torch's private short cut where it exists."""
    private: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return private or (lambda index: torch.cuda.current_stream(index).cuda_stream)

"""Starting a kernel on tensors: with it the memory that a call needs for itself, and PyTorch's part of it.

The worker and the loader start kernels through here alone, so that what was timed is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ksearch import packing
from ksearch.backends import Kernel, LaunchError
from ksearch.launch import Launch
from ksearch.operators.program import Input, Role
from ksearch.types import Workload


class Starter:
    """Starts one kernel on tensors of one workload, with any number of rows.

    Memory that a call needs comes from PyTorch's allocator, which gives it to nobody else before the kernel
    is done with it: who gets it next waits in the same stream, or belongs to the same graph.
    """

    def __init__(
        self,
        kernel: Kernel,
        launch: Launch,
        workload: Workload,
        inputs: Sequence[Input],
        device: torch.device,
        scratch: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        """`scratch`: where a call's own memory comes from, if not from PyTorch's allocator.

        Raises LaunchError where PyTorch is to add a bias that these inputs do not have.
        """
        self._kernel = kernel
        self._scratch = scratch or self._allocate
        self._device = device
        self._scratch_bytes = launch.scratch_bytes
        self._torch_product = launch.torch_product
        self.is_plain = not (launch.torch_product or launch.scratch_bytes or workload.is_prepacked)
        """A call is a start of the kernel, and nothing else."""
        self._inner, self._cols = workload.inner, workload.cols
        self._dtype: torch.dtype = getattr(torch, workload.dtype)
        self._count = len(inputs)
        roles = [item.role for item in inputs]
        self._others = [place for place, role in enumerate(roles) if not role.is_operand]
        self._bias = launch.torch_bias
        if launch.torch_product:
            self._left, self._right = roles.index(Role.LEFT), roles.index(Role.RIGHT)
            self._others = [place for place in self._others if place != self._bias]
        if self._bias is not None and (self._bias >= len(roles) or roles[self._bias] is not Role.ROW):
            raise LaunchError(f"the launch says that input {self._bias} is a linear's bias, which it is not")

    def __call__(
        self,
        tensors: Sequence[torch.Tensor],
        pointers: tuple[int, ...],
        rows: int,
        stream: int,
        packed: torch.Tensor | None = None,
    ) -> None:
        """`tensors`: the inputs in order, contiguous; `pointers`: theirs and the outputs'; `stream`: the
        current one of the device; `packed`: of a prepacked workload the weight as `packing.Packer` gave it.
        Asynchronous on a GPU. Raises LaunchError where the driver refuses.
        """
        if self._torch_product:
            left = tensors[self._left]
            if left.dim() != 2:
                left = left.view(rows, self._inner)
            bias = None if self._bias is None else tensors[self._bias].view(-1)
            if packed is not None:
                product = packing.product(left, packed, bias)
            else:
                product = torch.empty((rows, self._cols), dtype=self._dtype, device=self._device)
                right = tensors[self._right].t()
                if bias is None:
                    torch.mm(left, right, out=product)  # with `out`, autocast lets the dtype be
                else:
                    torch.addmm(bias, left, right, out=product)  # as torch.nn.functional.linear
            others = [pointers[place] for place in self._others]
            pointers = (product.data_ptr(), *others, *pointers[self._count :])
        if self._scratch_bytes:
            scratch = self._scratch()  # held until the kernel is started
            pointers = (*pointers, scratch.data_ptr())
        if packed is not None and not self._torch_product:
            pointers = (*pointers, packed.data_ptr())
        self._kernel(pointers, rows, stream)

    def _allocate(self) -> torch.Tensor:
        return torch.empty(self._scratch_bytes, dtype=torch.uint8, device=self._device)

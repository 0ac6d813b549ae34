"""Packing a linear's weight: once, when it is loaded, into the form that one kernel takes it in.

Worker and loader pack through here alone, so that what was checked is what runs. What is packed is a copy:
the weight itself stays, for PyTorch and for what a kernel computes again.
"""

from __future__ import annotations

import torch

from ksearch.backends import Kernel, LaunchError
from ksearch.launch import Launch
from ksearch.types import Workload


class Packer:
    """Packs weights for one kernel of a prepacked workload."""

    def __init__(self, kernel: Kernel, launch: Launch, workload: Workload, device: torch.device) -> None:
        self._kernel = kernel
        self._rows, self._cols = workload.rows, workload.cols
        self._device = device
        self.is_torchs = launch.torch_product
        """PyTorch reorders the weight for its own product: the kernel gets nothing of it."""
        self.size_bytes = launch.packed_bytes
        """Of what the kernel gets."""

    def __call__(self, weight: torch.Tensor, stream: int, into: torch.Tensor | None = None) -> torch.Tensor:
        """The packed weight, in the memory of `into` where the kernel gets it and that is given.

        `weight`: contiguous, on the kernel's device; `stream`: the current one. Asynchronous on a GPU. Raises
        LaunchError where the driver refuses, or PyTorch has no such product.
        """
        if self.is_torchs:
            return reordered(weight, self._rows)
        if into is None:
            into = torch.empty(self.size_bytes, dtype=torch.uint8, device=self._device)
        self._kernel.pack(weight.data_ptr(), into.data_ptr(), self._cols, stream)
        return into


def reordered(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """A weight as oneDNN wants it for products of that many rows. Raises LaunchError where there is none."""
    try:
        found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(f"this PyTorch does not reorder such a weight: {reason}") from error
    return found


def product(left: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product of a matrix with what `reordered` gave, with a bias of one value a column added."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, packed, bias, "none", [], "")
    return found


def packed_bytes(packed: torch.Tensor) -> int:
    """Of a packed weight, whoever's it is."""
    return int(torch.ops.mkldnn._nbytes(packed)) if packed.is_mkldnn else packed.nbytes

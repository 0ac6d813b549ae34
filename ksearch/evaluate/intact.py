"""Whether what candidates are judged by is still what it was: a kernel may write anywhere in its process."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """The sum of all their bits."""
    sums = [each.view(_INTEGER[each.itemsize]).sum(dtype=torch.int64) for each in tensors]
    return int(torch.stack(sums).sum())

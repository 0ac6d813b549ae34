"""Where the packed weights of a candidate come from: made anew and watched, or once for all calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch

from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.messages import Finding
from ksearch.packing import Packer
from ksearch.types import Status

Pack: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
"""(weight, stream) -> the packed weight."""


def pack_once(packer: Packer) -> Pack:
    """For calls with one weight that does not change: what is timed."""
    kept: list[torch.Tensor] = []

    def packed(weight: torch.Tensor, stream: int) -> torch.Tensor:
        if not kept:
            kept.append(packer(weight, stream))
        return kept[0]

    return packed


class CheckedPack:
    """The packed weights that checked calls get: made anew for each, twice, in guarded memory.

    Of two packings over different poison every bit must be the same, and no kernel may write to what it gets.
    What PyTorch reorders for itself is only made anew: no kernel sees it.
    """

    def __init__(self, packer: Packer, device: torch.device) -> None:
        self._packer = packer
        self._memory = Guarded((1, max(1, packer.size_bytes // 4)), torch.float32, device)
        self._packed: torch.Tensor | None = None
        """The sum of all bits that the last call was given."""
        self._differs: list[torch.Tensor] = []
        self._modified: list[torch.Tensor] = []

    def packed(self, weight: torch.Tensor, stream: int) -> torch.Tensor:
        """For the next call."""
        if self._packer.is_torchs:
            return self._packer(weight, stream)
        self._look()
        sums = []
        for number in range(2):
            self._memory.poison(number)
            self._packer(weight, stream, self._memory.values)
            sums.append(self._memory.checksum())
        self._differs.append(sums[0] != sums[1])
        self._packed = sums[1]
        return self._memory.values

    def _look(self) -> None:
        """Whether the last call left its packed weight as it was."""
        if self._packed is not None:
            self._modified.append(self._memory.checksum() != self._packed)

    def judged(self, finding: Finding) -> Finding:
        """What the check found, or what is wrong with the packed weights, where that is worse."""
        if self._packed is None:
            return finding
        self._look()
        facts = [self._memory.damaged(), torch.stack(self._modified).any(), torch.stack(self._differs).any()]
        is_damaged, is_modified, differs = torch.stack(facts).tolist()
        if is_damaged or is_modified:
            message = "wrote outside its packed weight" if is_damaged else "packed weight modified"
            return Finding(Status.OUT_OF_BOUNDS, message, finding.error, healthy=False)
        if differs and finding.status in (Status.PASSED, Status.WRONG):
            message = "two packings of one weight differ, or leave bytes of it unwritten"
            return replace(finding, status=Status.NONDETERMINISTIC, message=message)
        return finding

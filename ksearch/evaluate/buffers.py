"""Memory that notices: a tensor between two guard zones, and patterns that show what was not written.

The patterns are NaNs with a payload of their own: a kernel that *reads* past a buffer gets a NaN.
"""

from __future__ import annotations

import torch

_INTEGER = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

POISONS = {
    torch.float32: (0x7FE5A5A5, 0x5A5A5A5A),
    torch.float16: (0x7E5A, 0x5A5A),
    torch.bfloat16: (0x7FE5, 0x5A5A),
    torch.int64: (0x7FE5A5A5A5A5A5A5, 0x5A5A5A5A5A5A5A5A),
}
"""What an output holds before the first run (a NaN) and before the second (a finite number)."""

_GUARD = {
    torch.float32: 0x7FEB3C69, torch.float16: 0x7EB3, torch.bfloat16: 0x7FEB, torch.int64: 0x7FEB3C697FEB3C69,
    torch.bool: 1,
}  # fmt: skip

_GUARD_BYTES = (4096, 4 << 20)
"""A guard zone is one row, for the kernel that is off by a row, within these limits."""


class Guarded:
    """A contiguous matrix in guarded memory; `shift` moves its base that many elements off alignment."""

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, shift: int = 0
    ) -> None:
        itemsize = dtype.itemsize
        low, high = _GUARD_BYTES
        guard = -(-min(max(low, shape[1] * itemsize), high) // low) * low // itemsize
        size = shape[0] * shape[1]
        self._begin, self._end = guard + shift, guard + shift + size
        self._pattern = _GUARD[dtype]
        self.raw = torch.empty(self._end + guard, dtype=_INTEGER[itemsize], device=device)
        """Everything, guards included, as integers: NaNs compare equal to themselves."""
        self.mend()
        self.bits = self.raw[self._begin : self._end]
        """The values alone, as integers."""
        self.values = self.bits.view(dtype).view(shape)

    @property
    def pointer(self) -> int:
        return self.values.data_ptr()

    def poison(self, run: int) -> None:
        """Overwrite all values before run 0 or run 1."""
        self.bits.fill_(POISONS[self.values.dtype][run])

    def checksum(self) -> torch.Tensor:
        """The sum of all bits, guards included, for what is too large to be kept twice."""
        return self.raw.sum(dtype=torch.int64)

    def restore(self, pristine: torch.Tensor) -> None:
        """Give the values back what they were when `raw` was copied; the guard zones stay as they are."""
        self.bits.copy_(pristine[self._begin : self._end])

    def mend(self) -> None:
        """Make the guard zones anew."""
        self.raw[: self._begin] = self._pattern
        self.raw[self._end :] = self._pattern

    def damaged(self) -> torch.Tensor:
        """Whether a guard zone was written to; a tensor, so that asking does not wait for the device."""
        before, after = self.raw[: self._begin], self.raw[self._end :]
        return (before != self._pattern).any() | (after != self._pattern).any()


class Scratch:
    """The memory that checked calls get for themselves: between guard zones, and poisoned before each."""

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        self._memory = Guarded((1, size_bytes // 4), torch.float32, device)
        self._taken = 0

    def take(self) -> torch.Tensor:
        """For the next call: what the one before left there is gone."""
        self._memory.poison(self._taken % 2)
        self._taken += 1
        return self._memory.values

    def is_damaged(self) -> bool:
        """Whether any call wrote beside it; waits for the device."""
        return bool(self._memory.damaged())

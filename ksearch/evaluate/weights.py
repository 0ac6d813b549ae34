"""The values of a linear's weight: as a layer is initialised for timing, of several scales for checking.

A weight may be the most of what a workload holds, so there are few of them, which the cases of a check share:
a case differs by a few elements, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ksearch.evaluate.buffers import Guarded

_LARGE = 16.0
"""How many times the initial bound the largest weights are: the sigmoid of what they give saturates."""

_HUGE = 1e4
_ORDINARY = 60.0
"""No ordinary element of the other operand is larger."""


def bound(inner: int) -> float:
    """Of the values that torch.nn.Linear starts with."""
    return 1.0 / math.sqrt(inner)


def largest_product(dtype: torch.dtype, cols: int) -> float:
    """What no sum of products may exceed, in whatever order it is taken.

    Of float16 half its range, because PyTorch rounds such a sum before it goes on and a fused kernel need
    not; otherwise so that the squares of a row of them add up in float32.
    """
    if dtype is torch.float16:
        return torch.finfo(dtype).max / 2
    return math.sqrt(torch.finfo(torch.float32).max / cols) / 8


def largest_factor(dtype: torch.dtype, cols: int, inner: int) -> float:
    """The largest value that the other operand may hold all over."""
    return largest_product(dtype, cols) / (inner * _LARGE * bound(inner))


def fill_initial(weight: torch.Tensor, generator: torch.Generator) -> None:
    """As torch.nn.Linear does; what is timed."""
    limit = bound(weight.shape[1])
    weight.uniform_(-limit, limit, generator=generator)


def fill_mixed(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Rows of four kinds in turn: as initialised, normal, large (sigmoids saturate) and small."""
    limit = bound(weight.shape[1])
    fill_initial(weight[0::4], generator)
    weight[1::4].normal_(0.0, limit, generator=generator)
    weight[2::4].uniform_(-_LARGE * limit, _LARGE * limit, generator=generator)
    weight[3::4].normal_(0.0, limit / 64, generator=generator)


def fill_alike(weight: torch.Tensor, generator: torch.Generator) -> None:
    """All rows the same: so are the errors of their products, and no sum over the columns can hide them.

    In a sum of 32768 sigmoids of other rows, a product in TF32 is off by no more than the sum's own rounding.
    """
    fill_initial(weight[:1], generator)
    weight[1:] = weight[:1]


@dataclass(frozen=True, slots=True)
class Patch:
    """One element that is something else for a while."""

    row: int
    column: int
    value: float


def patches(
    shape: tuple[int, int], dtype: torch.dtype, most: float, *, apart: bool
) -> list[tuple[Patch, ...]]:
    """Huge, infinite and NaN elements, at heads and tails; `most`: what the other operand may hold all over.

    `apart`: one at a time, and in the last column, for a reduction over them shows one only.
    """
    cols, inner = shape
    near = 1e4 if inner < 64 else 0.0  # a spike of the other operand may stand at the same place
    huge = min(_HUGE, largest_product(dtype, cols) / max(most, _ORDINARY, near))
    huge = 2.0 ** math.floor(math.log2(huge))  # the same in every dtype
    odd = (
        Patch(cols - 1, inner // 2, huge),
        Patch(cols // 2, 0, torch.inf),
        Patch(0, inner - 1, torch.nan),
    )
    if apart:
        return [(Patch(cols - 1, each.column, each.value),) for each in odd]
    return [odd] if cols >= len(odd) else [(each,) for each in odd]


@dataclass(slots=True)
class Shared:
    """A weight that several cases have."""

    guarded: Guarded
    wide: torch.Tensor | None
    """Its values in float64, while they are needed."""
    pristine: torch.Tensor
    """Sum of all its bits, guards included. A clone would double what may be gigabytes."""

    @classmethod
    def of(cls, guarded: Guarded) -> Shared:
        return cls(guarded, guarded.values.double(), guarded.checksum())

    def modified(self) -> torch.Tensor:
        return self.guarded.checksum() != self.pristine

    @contextmanager
    def patched(self, odd: Sequence[Patch]) -> Iterator[None]:
        """With these elements in place of its own."""
        held = [self.guarded.values] if self.wide is None else [self.guarded.values, self.wide]
        kept = [[tensor[each.row, each.column].clone() for tensor in held] for each in odd]
        for each in odd:
            for tensor in held:
                tensor[each.row, each.column] = each.value
        try:
            yield
        finally:
            for each, own in zip(odd, kept, strict=True):
                for tensor, value in zip(held, own, strict=True):
                    tensor[each.row, each.column] = value

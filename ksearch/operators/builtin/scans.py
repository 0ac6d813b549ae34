"""Ops that sum up, or multiply, along a dimension, by default the last.

The option `dim` is text, for the reason that `ksearch.operators.builtin.reductions` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ksearch.operators.builtin.functional import F
from ksearch.operators.builtin.reductions import one_dim
from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor


def _along(input: Tensor, dim: int = -1, *, dtype: Any = None) -> Mapping[str, Any] | str:
    return one_dim(input, dim, dtype)


@op(torch_function="torch.cumsum", adapter=_along)
def cumsum(x: Tensor, *, dim: str = "-1") -> Tensor:
    return x.cumsum(dim=int(dim))


@op(torch_function="torch.cumprod", adapter=_along)
def cumprod(x: Tensor, *, dim: str = "-1") -> Tensor:
    return x.cumprod(dim=int(dim))


@op
def reverse_cumsum(x: Tensor, *, dim: str = "-1") -> Tensor:
    """From the last place on: each is the sum of itself and all that come after it."""
    along = int(dim)
    return x.flip(along).cumsum(dim=along).flip(along)


@op
def exclusive_cumsum(x: Tensor, *, dim: str = "-1") -> Tensor:
    """Each is the sum of all before it, the first 0."""
    along = int(dim)
    return F.pad(x.cumsum(dim=along), (*(0, 0) * (-1 - along), 1, -1))


@op(mask="mask")
def masked_cumsum(x: Tensor, mask: Tensor, *, dim: str = "-1") -> Tensor:
    """Of the elements where the mask, of bool, is set."""
    return (x * mask).cumsum(dim=int(dim))

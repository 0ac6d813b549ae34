"""Ops that sum up, or multiply, along the last dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ksearch.operators.builtin.functional import F
from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor


def _along_last(input: Tensor, dim: int = -1, *, dtype: Any = None) -> Mapping[str, Any] | str:
    if dim not in (-1, input.dim() - 1) or isinstance(dim, bool):
        return f"dim={dim} is not the last one"
    if dtype not in (None, input.dtype):
        return f"dtype={dtype} is not that of the input"
    return {}


@op(torch_function="torch.cumsum", adapter=_along_last)
def cumsum(x: Tensor) -> Tensor:
    return x.cumsum(dim=-1)


@op(torch_function="torch.cumprod", adapter=_along_last)
def cumprod(x: Tensor) -> Tensor:
    return x.cumprod(dim=-1)


@op
def reverse_cumsum(x: Tensor) -> Tensor:
    """From the last column on: each is the sum of itself and all that come after it."""
    return x.flip(-1).cumsum(dim=-1).flip(-1)


@op
def exclusive_cumsum(x: Tensor) -> Tensor:
    """Each is the sum of all columns before it, the first 0."""
    return F.pad(x.cumsum(dim=-1)[..., :-1], (1, 0))


@op(mask="mask")
def masked_cumsum(x: Tensor, mask: Tensor) -> Tensor:
    """Of the elements where the mask, of bool, is set."""
    return (x * mask).cumsum(dim=-1)

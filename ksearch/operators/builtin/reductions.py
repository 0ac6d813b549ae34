"""Ops that leave one value of a row, or of the whole tensor: sums, extremes and their places, norms.

The option `dim` is text, `all`, `-1` or `-2,-1`, so that no call in PyTorch's form is taken for the op's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ksearch.errors import UsageError
from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor

    Dims = int | Sequence[int] | None

ALL = "all"


def _dims(dim: str) -> tuple[int, ...]:
    """As PyTorch takes them: none for all."""
    return () if dim == ALL else tuple(int(each) for each in dim.split(","))


def _one(dim: str) -> int | None:
    """The same for what PyTorch has over one dim or all. Raises ValueError."""
    dims = _dims(dim)
    if len(dims) > 1:
        raise ValueError(f"PyTorch has it over one dim or all, not over {dim}")
    return dims[0] if dims else None


def _named(input: Tensor, dim: Dims, keepdim: bool, dtype: Any = None) -> dict[str, Any]:
    """The options `dim` and `keepdim` for what PyTorch is called with.

    Raises UsageError where there can be no kernel: PyTorch then gets the call as it is.
    """
    if dtype is not None and (dtype != input.dtype or not input.is_floating_point()):
        raise UsageError(f"dtype={dtype} is not that of the input")
    rank = input.dim()
    given = (dim,) if isinstance(dim, int) else tuple(dim or ())
    if any(isinstance(each, bool) or not -rank <= each < rank for each in given):
        raise UsageError(f"dim={dim!r} does not name dims of {rank}")
    dims = sorted({each % rank - rank for each in given})
    is_all = not dims or 1 < rank == len(dims)
    return {"dim": ALL if is_all else ",".join(map(str, dims)), "keepdim": keepdim}


def one_dim(input: Tensor, dim: int | None, dtype: Any = None) -> Mapping[str, Any] | str:
    """The option `dim` for what PyTorch has along one dim, or why there can be no kernel."""
    rank = max(1, input.dim())
    if dim is None or isinstance(dim, bool) or not -rank <= dim < rank:
        return f"dim={dim} does not name a dim of {rank}"
    # A sum of int16 is int64 where no dtype is named, so to name the input's own says something.
    if dtype is not None and (dtype != input.dtype or not input.is_floating_point()):
        return f"dtype={dtype} is not that of the input"
    return {"dim": str(dim % rank - rank)}


def _sum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Mapping[str, Any]:
    return _named(input, dim, keepdim, dtype)


@op(name="sum", torch_function="torch.sum", adapter=_sum)
def sum_(x: Tensor, *, dim: str = ALL, keepdim: bool = False) -> Tensor:
    return x.sum(dim=_dims(dim), keepdim=keepdim)


@op(torch_function="torch.mean", adapter=_sum)
def mean(x: Tensor, *, dim: str = ALL, keepdim: bool = False) -> Tensor:
    return x.mean(dim=_dims(dim), keepdim=keepdim)


def _prod(
    input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Mapping[str, Any]:
    if dim is None and keepdim:
        raise UsageError("torch.prod keeps dims only where it is told one")
    return _named(input, dim, keepdim, dtype)


@op(torch_function="torch.prod", adapter=_prod)
def prod(x: Tensor, *, dim: str = ALL, keepdim: bool = False) -> Tensor:
    one = _one(dim)
    return x.prod() if one is None else x.prod(dim=one, keepdim=keepdim)


def _amax(input: Tensor, dim: Dims = (), keepdim: bool = False) -> Mapping[str, Any]:
    return _named(input, dim, keepdim)


@op(torch_function="torch.amax", adapter=_amax)
def amax(x: Tensor, *, dim: str = ALL, keepdim: bool = False) -> Tensor:
    return x.amax(dim=_dims(dim), keepdim=keepdim)


@op(torch_function="torch.amin", adapter=_amax)
def amin(x: Tensor, *, dim: str = ALL, keepdim: bool = False) -> Tensor:
    return x.amin(dim=_dims(dim), keepdim=keepdim)


def _argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Mapping[str, Any]:
    return _named(input, dim, keepdim)


@op(torch_function="torch.argmax", adapter=_argmax)
def argmax(x: Tensor, *, dim: str = ALL, keepdim: bool = False) -> Tensor:
    """int64: of equal values the first."""
    return x.argmax(dim=_one(dim), keepdim=keepdim)


@op(torch_function="torch.argmin", adapter=_argmax)
def argmin(x: Tensor, *, dim: str = ALL, keepdim: bool = False) -> Tensor:
    """int64: of equal values the first."""
    return x.argmin(dim=_one(dim), keepdim=keepdim)


def _logsumexp(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Mapping[str, Any]:
    options = _named(input, dim, keepdim)
    if options["dim"] == ALL:
        options["dim"] = ",".join(map(str, range(-input.dim(), 0)))
    return options


@op(torch_function="torch.logsumexp", adapter=_logsumexp)
def logsumexp(x: Tensor, *, dim: str = "-1", keepdim: bool = False) -> Tensor:
    """PyTorch has it over dims that are named, not over all."""
    if dim == ALL:
        raise ValueError("PyTorch has logsumexp over dims that are named, such as -2,-1")
    return x.logsumexp(dim=_dims(dim), keepdim=keepdim)


def _vector_norm(
    x: Tensor, ord: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> Mapping[str, Any]:
    return {"ord": ord, **_named(x, dim, keepdim, dtype)}


@op(torch_function="torch.linalg.vector_norm", adapter=_vector_norm)
def norm(x: Tensor, *, ord: float = 2.0, dim: str = ALL, keepdim: bool = False) -> Tensor:
    """Of order 1, 2, inf or -inf."""
    import torch

    result: Tensor = torch.linalg.vector_norm(x, ord, _dims(dim) or None, keepdim)
    return result


@op
def frobenius_normalize(x: Tensor) -> Tensor:
    """Of length 1, all elements taken as one vector."""
    import torch

    result: Tensor = x / torch.linalg.vector_norm(x)
    return result


def _var(
    input: Tensor,
    dim: Dims | bool = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Mapping[str, Any]:
    if isinstance(dim, bool):  # torch.var(x, unbiased)
        unbiased, dim = dim, None
    options = _named(input, dim, keepdim)
    return {**options, "correction": float(unbiased) if correction is None else correction}


@op(torch_function="torch.var", adapter=_var)
def var(x: Tensor, *, dim: str = ALL, correction: float = 1.0, keepdim: bool = False) -> Tensor:
    return x.var(dim=_dims(dim) or None, correction=correction, keepdim=keepdim)


@op(torch_function="torch.std", adapter=_var)
def std(x: Tensor, *, dim: str = ALL, correction: float = 1.0, keepdim: bool = False) -> Tensor:
    return x.std(dim=_dims(dim) or None, correction=correction, keepdim=keepdim)

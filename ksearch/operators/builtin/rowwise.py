"""Ops that reduce over a dimension, mostly the last: softmax and norms, alone or fused with what is before.

The option `dim` is text, for the reason that `ksearch.operators.builtin.reductions` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ksearch.operators.builtin.functional import F
from ksearch.operators.builtin.reductions import one_dim
from ksearch.operators.registry import alias, op

if TYPE_CHECKING:
    from torch import Size, Tensor

    Shape = int | Sequence[int] | Size | None


def _softmax(
    input: Tensor, dim: int | None = -1, _stacklevel: int = 3, dtype: Any = None
) -> Mapping[str, Any] | str:
    return one_dim(input, dim, dtype)


def _is_last(normalized_shape: Shape, input: Tensor) -> bool:
    """Whether torch's `normalized_shape` is the last dimension alone; None means that here."""
    if normalized_shape is None or isinstance(normalized_shape, int):
        return normalized_shape in (None, *_last(input))
    return tuple(normalized_shape) == _last(input)


def _last(input: Tensor) -> tuple[int, ...]:
    """The last dimension, which a nested tensor has although it has no shape."""
    return (input.size(-1),) if input.dim() else ()


_NOT_LAST = "normalized_shape is not the last dimension alone"


@op(torch_function="torch.nn.functional.softmax", adapter=_softmax)
def softmax(x: Tensor, *, dim: str = "-1") -> Tensor:
    return x.softmax(dim=int(dim))


@op(torch_function="torch.nn.functional.log_softmax", adapter=_softmax)
def log_softmax(x: Tensor, *, dim: str = "-1") -> Tensor:
    return x.log_softmax(dim=int(dim))


@op(mask=("full", "row", "none"))
def scaled_masked_softmax(x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """The mask is added: -inf hides an element."""
    scaled = x * scale
    return (scaled if mask is None else scaled + mask).softmax(dim=-1)


def _rms_norm(
    input: Tensor,
    normalized_shape: Shape = None,
    weight: Tensor | None = None,  # noqa: ARG001  (an adapter has all of torch's parameters)
    eps: float | None = None,
) -> Mapping[str, Any] | str:
    if not _is_last(normalized_shape, input):
        return _NOT_LAST
    if eps is None:
        return "without eps it depends on the dtype"
    return {"eps": eps}


@op
def rms_scale(x: Tensor, *, dim: str = "-3", eps: float = 1e-5) -> Tensor:
    """x divided by the root of the mean of its squares over a dim: without a weight, and by default over the
    channels of an image."""
    return x * (x.square().mean(dim=int(dim), keepdim=True) + eps).rsqrt()


@op(torch_function="torch.nn.functional.rms_norm", adapter=_rms_norm)
def rmsnorm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _layer_norm(
    input: Tensor,
    normalized_shape: Shape = None,
    weight: Tensor | None = None,  # noqa: ARG001
    bias: Tensor | None = None,  # noqa: ARG001
    eps: float = 1e-5,
) -> Mapping[str, Any] | str:
    return {"eps": eps} if _is_last(normalized_shape, input) else _NOT_LAST


@op(torch_function="torch.nn.functional.layer_norm", adapter=_layer_norm)
def layernorm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@op
def add_rmsnorm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The norm of the sum, and the sum."""
    total = x + residual
    return rmsnorm(total, weight, eps=eps), total


@op
def add_layernorm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The norm of the sum, and the sum."""
    total = x + residual
    return layernorm(total, weight, bias, eps=eps), total


@op
def l1norm(x: Tensor, *, eps: float = 1e-12) -> Tensor:
    """torch.nn.functional.normalize with p=1, over the last dimension."""
    return F.normalize(x, p=1.0, dim=-1, eps=eps)


@op
def l2norm(x: Tensor, *, eps: float = 1e-12) -> Tensor:
    """torch.nn.functional.normalize over the last dimension."""
    return F.normalize(x, dim=-1, eps=eps)


alias("rms_norm", "rmsnorm")
alias("layer_norm", "layernorm")

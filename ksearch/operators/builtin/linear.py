"""Linear layers, alone and fused with what follows; the weight is as torch.nn.Linear keeps it, (out, in)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ksearch.operators.builtin.functional import F
from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor


@op(x="left", weight="right", torch_function="torch.nn.functional.linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@op(x="left", weight="right")
def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias).relu()


@op(x="left", weight="right")
def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, approximate: str = "none"
) -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate=approximate)


@op(x="left", weight="right")
def linear_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.silu(F.linear(x, weight, bias))


@op(x="left", weight="right")
def linear_sigmoid_scale_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: float = 2.0
) -> Tensor:
    """The linear's result, and `scale` times its sigmoid added to it."""
    result = F.linear(x, weight, bias)
    return result.sigmoid() * scale + result


@op(x="left", weight="right")
def linear_sigmoid_sum(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One value a row, shape (..., 1)."""
    return F.linear(x, weight, bias).sigmoid().sum(dim=-1, keepdim=True)


@op(x="left", weight="right")
def linear_logsumexp(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One value a row, shape (..., 1)."""
    return F.linear(x, weight, bias).logsumexp(dim=-1, keepdim=True)

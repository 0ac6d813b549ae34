"""Ops that map every element by itself: activations, and sums and products of several tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ksearch.operators.builtin.functional import F
from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor

ANY_ROLE = ("full", "row", "column", "scalar")


@op(torch_function="torch.sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


@op(torch_function="torch.tanh")
def tanh(x: Tensor) -> Tensor:
    return x.tanh()


@op(torch_function="torch.exp")
def exp(x: Tensor) -> Tensor:
    return x.exp()


@op(torch_function="torch.nn.functional.relu")
def relu(x: Tensor) -> Tensor:
    return x.relu()


@op(torch_function="torch.nn.functional.leaky_relu")
def leaky_relu(x: Tensor, *, negative_slope: float = 0.01) -> Tensor:
    return F.leaky_relu(x, negative_slope)


@op(torch_function="torch.nn.functional.elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op(torch_function="torch.nn.functional.selu")
def selu(x: Tensor) -> Tensor:
    return F.selu(x)


@op(torch_function="torch.nn.functional.gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@op(torch_function="torch.nn.functional.silu")
def silu(x: Tensor) -> Tensor:
    return F.silu(x)


@op(torch_function="torch.nn.functional.mish")
def mish(x: Tensor) -> Tensor:
    return F.mish(x)


@op(torch_function="torch.nn.functional.hardsigmoid")
def hardsigmoid(x: Tensor) -> Tensor:
    return F.hardsigmoid(x)


@op(torch_function="torch.nn.functional.hardswish")
def hardswish(x: Tensor) -> Tensor:
    return F.hardswish(x)


@op(torch_function="torch.nn.functional.hardtanh")
def hardtanh(x: Tensor, *, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return F.hardtanh(x, min_val, max_val)


@op(torch_function="torch.nn.functional.softplus")
def softplus(x: Tensor, *, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return F.softplus(x, beta, threshold)


@op(torch_function="torch.nn.functional.softsign")
def softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


def _clamp(
    input: Tensor,  # noqa: ARG001  (an adapter has all of torch's parameters)
    min: Any = None,
    max: Any = None,
) -> Mapping[str, Any] | str:
    if min is None and max is None:
        return "torch.clamp wants at least one bound"
    bounds = {"min": min, "max": max}
    return {name: bound for name, bound in bounds.items() if bound is not None}


@op(torch_function="torch.clamp", adapter=_clamp)
def clamp(x: Tensor, *, min: float = -math.inf, max: float = math.inf) -> Tensor:
    """An infinite bound is none."""
    return x.clamp(None if min == -math.inf else min, None if max == math.inf else max)


@op(other=ANY_ROLE, torch_function="torch.add")
def add(x: Tensor, other: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x + other if alpha == 1 else x.add(other, alpha=alpha)


@op(other=ANY_ROLE, torch_function="torch.mul")
def mul(x: Tensor, other: Tensor) -> Tensor:
    return x * other


@op
def residual_add(x: Tensor, residual: Tensor, *, scale: float = 1.0) -> Tensor:
    return x.add(residual, alpha=scale)  # one kernel in PyTorch, too


@op
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


@op
def geglu(gate: Tensor, up: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(gate, approximate=approximate) * up

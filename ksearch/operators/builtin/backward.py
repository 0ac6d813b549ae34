"""What a gradient needs of softmax and the norms: the derivative with respect to their first tensor.

PyTorch's own backward of a norm starts from the mean and the deviation that its forward kept. An op has only
tensors of one dtype, so that these are computed again, by the kernels and by what they are measured against.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def _leaf(function: F) -> F:
    """Make it one call in a trace, whose meaning stands in `ksearch.operators.lowering.derivatives`.

    Its float64 is the textbook's formula, which says exactly where NaN and infinities go; PyTorch's fused
    functions differ in that between the CPU and CUDA.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        import torch

        tensors = tuple(arg for arg in args if arg is not None and not isinstance(arg, float | int))
        if torch.overrides.has_torch_function(tensors):
            return torch.overrides.handle_torch_function(call, tensors, *args)
        return function(*args)

    return call  # type: ignore[return-value]


@_leaf
def softmax_derivative(grad: Tensor, y: Tensor, dim: int) -> Tensor:
    import torch

    if grad.dtype is torch.float64:
        return (grad - (grad * y).sum(dim, keepdim=True)) * y
    return torch._softmax_backward_data(grad, y, dim, y.dtype)


@_leaf
def log_softmax_derivative(grad: Tensor, y: Tensor, dim: int) -> Tensor:
    import torch

    if grad.dtype is torch.float64:
        return grad - y.exp() * grad.sum(dim, keepdim=True)
    return torch._log_softmax_backward_data(grad, y, dim, y.dtype)


@_leaf
def rms_norm_derivative(grad: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    import torch

    again = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (grad, x, weight)
    )
    is_fused = x.is_cuda and x.dtype is not torch.float64 and not again  # that one has no derivative
    if is_fused and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        shape = [x.shape[-1]]
        inverse = torch.ops.aten._fused_rms_norm(x, shape, None, eps)[1]
        mask = [True, False]
        result: Tensor = torch.ops.aten._fused_rms_norm_backward(grad, x, shape, inverse, weight, mask)[0]
        return result
    wide = x.double() if x.dtype is torch.float64 else x.float()
    inverse = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    scaled = grad.to(wide.dtype) if weight is None else grad.to(wide.dtype) * weight
    normal = wide * inverse
    return ((scaled - normal * (scaled * normal).mean(-1, keepdim=True)) * inverse).to(x.dtype)


@_leaf
def layer_norm_derivative(grad: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    import torch

    if x.dtype is torch.float64:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        inverse = torch.rsqrt(variance + eps)
        scaled = grad if weight is None else grad * weight
        normal = (x - mean) * inverse
        inner = scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True)
        return inner * inverse
    shape = [x.shape[-1]]
    _, mean, inverse = torch.native_layer_norm(x, shape, None, None, eps)
    mask = [True, False, False]
    result: Tensor = torch.ops.aten.native_layer_norm_backward(
        grad, x, shape, mean, inverse, weight, None, mask
    )[0]
    return result


@op
def softmax_backward(grad: Tensor, y: Tensor, *, dim: str = "-1") -> Tensor:
    """Of `y`, what softmax gave."""
    return softmax_derivative(grad, y, int(dim))


@op
def log_softmax_backward(grad: Tensor, y: Tensor, *, dim: str = "-1") -> Tensor:
    """Of `y`, what log_softmax gave."""
    return log_softmax_derivative(grad, y, int(dim))


@op
def rmsnorm_backward(grad: Tensor, x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """With respect to `x`; PyTorch differentiates with respect to the weight."""
    return rms_norm_derivative(grad, x, weight, eps)


@op
def layernorm_backward(grad: Tensor, x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """With respect to `x`; PyTorch differentiates with respect to weight and bias."""
    return layer_norm_derivative(grad, x, weight, eps)

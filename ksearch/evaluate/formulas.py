"""Norms by their formulas, for references in float64: fused kernels leave them where values are extreme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _plain_rms_norm(
    x: torch.Tensor, _shape: object, weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """By its formula. PyTorch's fused kernels differ in a row with an infinity: zeros, or NaN all over."""
    normed = x * torch.rsqrt(
        (x * x).mean(-1, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)
    )
    return normed if weight is None else normed * weight


def _plain_group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    _cudnn: bool = True,
) -> torch.Tensor:
    """By its formula. PyTorch's multiplies x by a scale and adds a shift: where x is huge and equal, nothing
    is left of the bias, in float64 either."""
    rows = x.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(rows, -1, correction=0, keepdim=True)
    normal = ((rows - mean) * torch.rsqrt(variance + eps)).view(x.shape)
    return _scaled(normal, weight, bias)


def _plain_instance_norm(
    x: torch.Tensor,
    running_mean: None = None,  # noqa: ARG001  (the names are torch's)
    running_var: None = None,  # noqa: ARG001
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,  # noqa: ARG001
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> torch.Tensor:
    return _plain_group_norm(x, x.shape[1], weight, bias, eps)


def _plain_batch_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,  # noqa: ARG001
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> torch.Tensor:
    if running_mean is None or running_var is None:
        running_var, running_mean = torch.var_mean(x.transpose(0, 1).flatten(1), 1, correction=0)
    shape = _of_channels(x)
    inverse = torch.rsqrt(running_var.view(shape) + eps)
    return _scaled((x - running_mean.view(shape)) * inverse, weight, bias)


def _scaled(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight.view(_of_channels(x))
    return x if bias is None else x + bias.view(_of_channels(x))


def _of_channels(x: torch.Tensor) -> tuple[int, ...]:
    """The shape in which a value for each channel meets x."""
    return (1, -1, *(1,) * (x.dim() - 2))


PLAIN: dict[Any, Callable[..., torch.Tensor]] = {
    torch.rms_norm: _plain_rms_norm,
    torch.nn.functional.rms_norm: _plain_rms_norm,
    torch.nn.functional.group_norm: _plain_group_norm,
    torch.nn.functional.instance_norm: _plain_instance_norm,
    torch.nn.functional.batch_norm: _plain_batch_norm,
}

"""Ops as people write them, in a file of their own: the worker's process finds them there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import ksearch


@ksearch.op
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@ksearch.op
def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


@ksearch.op
def add_gated(x: Tensor, s: Tensor) -> Tensor:
    return x + s * torch.sigmoid(x)


@ksearch.op
def gated_pair(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(x)
    return x + s * gate, gate


@ksearch.op(scale="column")
def biased_relu(x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return torch.relu(x + bias) * scale


@ksearch.op
def sum_and_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total * torch.rsqrt((total * total).mean(dim=-1, keepdim=True) + eps) * weight, total


@ksearch.op(by="scalar")
def scaled_tanh(x: Tensor, by: Tensor) -> Tensor:
    return torch.tanh(x * by) / by


@ksearch.op
def residual_softmax(x: Tensor, residual: Tensor) -> Tensor:
    return torch.softmax(x + residual, dim=-1)


@ksearch.op
def spread_norm(x: Tensor) -> Tensor:
    """Beside a mean and the squares around it, a sum of something else."""
    apart = x - x.mean(dim=-1, keepdim=True)
    return (
        apart
        * torch.rsqrt((apart * apart).mean(dim=-1, keepdim=True) + 1e-6)
        * x.abs().mean(dim=-1, keepdim=True)
    )


@ksearch.op
def biased_softmax(x: Tensor, bias: Tensor) -> Tensor:
    """Its reductions read the row vector too."""
    return torch.softmax(x + bias, dim=-1)


@ksearch.op(heat="scalar")
def tempered_softmax(x: Tensor, heat: Tensor) -> Tensor:
    return torch.softmax(x / (heat.abs() + 1), dim=-1)


@ksearch.op(scale="column")
def linear_gated(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, other: Tensor) -> Tensor:
    y = torch.nn.functional.linear(x, weight, bias)
    return torch.sigmoid(y * scale) * other


@ksearch.op(scale="column")
def linear_extremes(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """Two values a row, of one pass, after a residual of the full shape."""
    y = torch.nn.functional.linear(x, weight, bias) * scale + residual
    return y.logsumexp(dim=-1), y.amax(dim=-1, keepdim=True)


@ksearch.op(gate="row", rate="column")
def decay(x: Tensor, gate: Tensor, rate: Tensor, *, dim: str = "-1") -> Tensor:
    """A sum along the row from its end, between other things."""
    along = int(dim)
    total = torch.sigmoid(x * gate).flip(along).cumsum(along).flip(along)
    return x - total * rate


@ksearch.op(weight="row", scale="column")
def centered(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """A norm over two dims in the middle, with inputs of every role."""
    y = x - x.mean(dim=(-3, -2), keepdim=True)
    return y * torch.rsqrt((y * y).mean(dim=(-3, -2), keepdim=True) + 1e-5) * weight * scale

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


@ksearch.op(scale="column")
def biased_relu(x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return torch.relu(x + bias) * scale


@ksearch.op
def rmsnorm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


@ksearch.op
def l2norm(x: Tensor, *, eps: float = 1e-12) -> Tensor:
    return x / (x * x).sum(dim=-1, keepdim=True).sqrt().clamp_min(eps)


@ksearch.op
def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=-1)


@ksearch.op
def residual_softmax(x: Tensor, residual: Tensor) -> Tensor:
    return torch.softmax(x + residual, dim=-1)


@ksearch.op
def layernorm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered * torch.rsqrt((centered * centered).mean(dim=-1, keepdim=True) + eps) * weight + bias

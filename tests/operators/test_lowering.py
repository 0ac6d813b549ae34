"""Every lowering against PyTorch itself in float64, NaN, inf, denormals and huge values included."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch.operators.builtin import backward
from ksearch.operators.lowering import supported
from ksearch.operators.program import Input
from ksearch.operators.trace import trace
from tests.operators.interpreter import evaluate, nasty


def _center_on_max(x: Any) -> Any:
    top, _ = x.max(dim=-1, keepdim=True)
    return x - top


UNARY: dict[str, Callable[[Any], Any]] = {
    "plus": lambda x: x + 1,
    "radd": lambda x: 1 + x,
    "minus": lambda x: x - 2.5,
    "rminus": lambda x: 2.5 - x,
    "times": lambda x: 3 * x,
    "over": lambda x: x / 3,
    "over_power_of_two": lambda x: x / -8,
    "over_zero": lambda x: x / 0.0,
    "rover": lambda x: 3 / x,
    "neg": lambda x: -x,
    "pos": lambda x: +x,
    "python_abs": abs,
    "exp": torch.exp,
    "exp_method": lambda x: x.exp(),
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "abs": torch.abs,
    "torch_neg": torch.neg,
    "sign": torch.sign,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "expit": torch.special.expit,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "pow_0": lambda x: x**0 + x,
    "pow_1": lambda x: x**1,
    "pow_2": lambda x: x**2,
    "pow_3": lambda x: torch.pow(x, 3),
    "pow_7": lambda x: x.pow(7),
    "pow_minus_1": lambda x: x**-1,
    "pow_minus_3": lambda x: x**-3,
    "pow_half": lambda x: x**0.5,
    "pow_minus_half": lambda x: x**-0.5,
    "pow_float": lambda x: x**1.7,
    "pow_huge": lambda x: x**101,
    "two_to_the": lambda x: 2**x,
    "const_to_the": lambda x: torch.pow(0.7, x),
    "relu": F.relu,
    "torch_relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "leaky_relu_slope": lambda x: F.leaky_relu(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "elu_alpha": lambda x: F.elu(x, alpha=0.5),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.5),
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus_args": lambda x: F.softplus(x, beta=2, threshold=5),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "hardtanh": F.hardtanh,
    "hardtanh_bounds": lambda x: F.hardtanh(x, -0.5, 2.0),
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
    "module": torch.nn.GELU(),
    "clamp": lambda x: torch.clamp(x, -1, 1),
    "clamp_crossed": lambda x: torch.clamp(x, 1, -1),
    "clip_min": lambda x: x.clip(min=0.5),
    "clamp_min": lambda x: x.clamp_min(0.25),
    "clamp_max": lambda x: torch.clamp_max(x, 0.25),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where_consts": lambda x: torch.where(x >= 0, 1.0, -2.0) * x,
    "where_method": lambda x: x.where(x != 0.5, -x),
    "where_and_or_not": lambda x: torch.where(((x > -1) & (x < 1)) | ~(x <= 3), x, x * 0),
    "logical": lambda x: torch.where(torch.logical_and(x > 0, torch.logical_not(x == 0.5)), x, 1.0),
    "where_zeros_like": lambda x: torch.where(x.lt(0), torch.zeros_like(x), x),
    "masked_fill": lambda x: x.masked_fill(x.isnan(), 0.0),
    "isinf": lambda x: torch.where(torch.isinf(x), 1.0, x),
    "isfinite": lambda x: x.where(torch.isfinite(x), torch.ones_like(x)),
    "mask_times": lambda x: x * (x > 0),
    "mask_as_number": lambda x: (x > 0).to(x.dtype) - x,
    "casts": lambda x: x.to(x.dtype).contiguous().clone().type_as(x) * 2,
    "zero_dim_tensor": lambda x: x * torch.tensor(0.125, dtype=torch.float64),
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "F_softmax": lambda x: F.softmax(x, -1),
    "softmax_by_hand": lambda x: (
        (x - x.max(dim=-1, keepdim=True).values).exp()
        / (x - x.max(dim=-1, keepdim=True)[0]).exp().sum(-1, keepdim=True)
    ),
    "softmin": lambda x: F.softmin(x, dim=-1),
    "log_softmax": lambda x: F.log_softmax(x, dim=-1),
    "logsumexp": lambda x: x - torch.logsumexp(x, dim=-1, keepdim=True),
    "sum": lambda x: x + x.sum(dim=-1, keepdim=True),
    "mean": lambda x: x - x.mean(-1, True),
    "amax": lambda x: x + torch.amax(x, dim=-1, keepdim=True),
    "amin": lambda x: x * x.amin(dim=[-1], keepdim=True),
    "max_unpacked": _center_on_max,
    "min": lambda x: x - torch.min(x, dim=-1, keepdim=True)[0],
    "var": lambda x: x * x.var(dim=-1, keepdim=True),
    "var_biased": lambda x: x + torch.var(x, dim=-1, keepdim=True, unbiased=False),
    "std": lambda x: x / x.std(-1, keepdim=True),
    "std_correction": lambda x: x + torch.std(x, dim=-1, keepdim=True, correction=2),
    "row_length": lambda x: x.square().sum(-1, keepdim=True) / x.shape[-1] * x.size(-1) ** -0.5 + x,
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6),
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[-1],)),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "normalize_1": lambda x: F.normalize(x, p=1, dim=-1, eps=1e-3),
    "vector_norm": lambda x: x + torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "vector_norm_inf": lambda x: x + torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True),
    "linalg_norm": lambda x: x + torch.linalg.norm(x, ord=1, dim=-1, keepdim=True),
    "norm": lambda x: x + x.norm(p=2, dim=-1, keepdim=True),
}

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add_alpha": lambda x, y: torch.add(x, y, alpha=0.3),
    "sub_alpha": lambda x, y: x.sub(y, alpha=2),
    "rsub": torch.rsub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": lambda x, y: torch.pow(x.abs(), y),
    "maximum": torch.maximum,
    "minimum": lambda x, y: torch.minimum(y, x),
    "max": torch.max,
    "min_other": lambda x, y: x.min(other=y),
    "clamp_tensors": lambda x, y: torch.clamp(x, min=y, max=y + 1),
    "where": lambda x, y: torch.where(x < y, y, x / 2),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, x, value=-1.5),
    "lerp_low": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp_high": lambda x, y: torch.lerp(x, y, 0.75),
    "lerp_tensor": lambda x, y: torch.lerp(x, y, y),
    "masked_softmax": lambda x, y: torch.softmax(x.masked_fill(y > 1, -math.inf), dim=-1),
    "attention_like": lambda x, y: torch.softmax(x * 0.125 + y, -1) * y,
}


def _agree(function: Callable[..., Any], *tensors: torch.Tensor) -> None:
    inputs = [Input(name) for name in ("x", "y")[: len(tensors)]]
    program = trace(function, inputs, {})
    expected = function(*tensors)
    atol = 1e-15 if program.family == "rowwise" else 1e-300  # differences of sums lose their last digits
    torch.testing.assert_close(evaluate(program, *tensors), expected, rtol=1e-12, atol=atol, equal_nan=True)


@pytest.mark.parametrize("name", UNARY)
def test_unary_agrees_with_torch(name: str) -> None:
    _agree(UNARY[name], nasty())


@pytest.mark.parametrize("name", BINARY)
def test_binary_agrees_with_torch(name: str) -> None:
    x = nasty()
    _agree(BINARY[name], x, x.roll(3, 0).flip(-1).contiguous())


def test_weights_are_rows_of_their_own() -> None:
    from ksearch.operators.program import Role

    inputs = [Input("x"), Input("weight", Role.ROW), Input("bias", Role.ROW), Input("scale", Role.COLUMN)]

    def function(x: Any, weight: Any, bias: Any, scale: Any) -> Any:
        normed = F.layer_norm(x, weight.shape, weight, bias, eps=1e-3)
        return F.rms_norm(normed * scale, x.size()[-1:], weight, eps=1e-6)

    x = torch.randn(5, 9, dtype=torch.float64)
    weight, bias = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    scale = torch.randn(5, 1, dtype=torch.float64)
    program = trace(function, inputs, {})
    torch.testing.assert_close(
        evaluate(program, x, weight, bias, scale), function(x, weight, bias, scale), rtol=1e-12, atol=1e-12
    )


def test_every_supported_name_is_a_torch_name_or_a_derivative() -> None:
    operators = {"and_", "or_", "invert", "getitem", "getattr", "truediv", "pos", "log_sigmoid", "_threshold"}
    namespaces = (torch, torch.Tensor, F, torch.special)
    for name in set(supported()) - operators:
        bare = name.removeprefix("special_").removeprefix("linalg_")
        assert any(hasattr(namespace, bare) for namespace in (*namespaces, torch.linalg, backward)), name

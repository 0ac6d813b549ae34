"""Activation functions, each by PyTorch's own formula so that NaN and inf agree."""

from __future__ import annotations

import math
from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.lowering.arithmetic import clamp, maximum, minimum
from ksearch.operators.lowering.table import absent, lowers, tensor
from ksearch.operators.values import Number, Value, apply, compare


@lowers("relu")
def _relu(input: Any, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return maximum(input, 0.0)


@lowers("leaky_relu")
def _leaky_relu(input: Any, negative_slope: Number = 0.01, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return compare(">", input, 0.0).select(input, tensor(input) * negative_slope)


@lowers("threshold", "_threshold")
def _threshold(input: Any, threshold: Number, value: Number, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return compare("<=", input, threshold).select(value, input)


@lowers("silu")
def _silu(input: Any, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return tensor(input) * apply("sigmoid", input)


@lowers("gelu")
def _gelu(input: Any, approximate: str = "none") -> Value:
    x = tensor(input)
    if approximate == "tanh":
        return 0.5 * x * (1.0 + apply("tanh", math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))
    if approximate == "none":
        return 0.5 * x * (1.0 + apply("erf", x * math.sqrt(0.5)))
    raise TraceError(f"approximate={approximate!r} is neither 'none' nor 'tanh'")


def _elu_scaled(x: Value, alpha: float, scale: float, input_scale: float) -> Value:
    negative = apply("expm1", x * input_scale) * (alpha * scale)
    return compare("<=", x, 0.0).select(negative, x * scale)


@lowers("elu")
def _elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return _elu_scaled(tensor(input), alpha, 1.0, 1.0)


@lowers("selu")
def _selu(input: Any, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return _elu_scaled(tensor(input), alpha, scale, 1.0)


@lowers("celu")
def _celu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return _elu_scaled(tensor(input), alpha, 1.0, 1.0 / alpha)


@lowers("mish")
def _mish(input: Any, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return tensor(input) * apply("tanh", apply("log1p", apply("exp", input)))


@lowers("softplus")
def _softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Value:
    scaled = tensor(input) * beta
    return compare(">", scaled, threshold).select(input, apply("log1p", apply("exp", scaled)) / beta)


@lowers("softsign")
def _softsign(input: Any) -> Value:
    return tensor(input) / (1.0 + apply("abs", input))


@lowers("tanhshrink")
def _tanhshrink(input: Any) -> Value:
    return tensor(input) - apply("tanh", input)


@lowers("hardtanh")
def _hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return clamp(input, min_val, max_val)


@lowers("relu6")
def _relu6(input: Any, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return clamp(input, 0.0, 6.0)


@lowers("hardsigmoid")
def _hardsigmoid(input: Any, inplace: bool = False) -> Value:
    absent(inplace=inplace)
    return clamp(tensor(input) + 3.0, 0.0, 6.0) / 6.0


@lowers("hardswish")
def _hardswish(input: Any, inplace: bool = False) -> Value:
    return tensor(input) * _hardsigmoid(input, inplace)


@lowers("logsigmoid", "log_sigmoid")
def _logsigmoid(input: Any) -> Value:
    return minimum(input, 0.0) - apply("log1p", apply("exp", -apply("abs", input)))

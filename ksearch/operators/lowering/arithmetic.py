"""Arithmetic, and PyTorch's functions that are one function of `ks::`."""

from __future__ import annotations

import math
from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.lowering.table import absent, lowers, tensor
from ksearch.operators.values import Mask, Number, Value, apply, compare

_DIRECT = {
    **{op: (op, f"special_{op}") for op in ("exp2", "expm1", "log1p", "erf")},
    **{op: (op,) for op in ("exp", "log", "log2", "sqrt", "rsqrt", "tanh", "sin", "cos", "floor", "ceil")},
    "abs": ("abs", "absolute"),
    "sigmoid": ("sigmoid", "expit", "special_expit"),
}


def _enter_direct(op: str, names: tuple[str, ...]) -> None:
    @lowers(*names)
    def function(input: Any, *, out: None = None) -> Value:
        absent(out=out)
        return apply(op, tensor(input))


for _op, _names in _DIRECT.items():
    _enter_direct(_op, _names)


def _numeric(a: Any, b: Any) -> tuple[Any, Any]:
    """A comparison that meets a tensor counts as 1 or 0; two comparisons would be boolean arithmetic."""
    if isinstance(a, Mask) and isinstance(b, Value):
        return a.select(1.0, 0.0), b
    if isinstance(b, Mask) and isinstance(a, Value):
        return a, b.select(1.0, 0.0)
    return a, b


@lowers("add")
def _add(input: Any, other: Any, *, alpha: Number = 1, out: None = None) -> Value:
    absent(out=out)
    a, b = _numeric(input, other)
    return apply("+", a, b if alpha == 1 else apply("*", b, alpha))


@lowers("sub", "subtract")
def _sub(input: Any, other: Any, *, alpha: Number = 1, out: None = None) -> Value:
    absent(out=out)
    return apply("-", input, other if alpha == 1 else apply("*", other, alpha))


@lowers("rsub")
def _rsub(input: Any, other: Any, *, alpha: Number = 1) -> Value:
    return _sub(other, input if alpha == 1 else apply("*", input, alpha))


@lowers("mul", "multiply")
def _mul(input: Any, other: Any, *, out: None = None) -> Value:
    absent(out=out)
    return apply("*", *_numeric(input, other))


@lowers("div", "truediv", "divide", "true_divide")
def _div(input: Any, other: Any, *, rounding_mode: str | None = None, out: None = None) -> Value:
    absent(rounding_mode=rounding_mode, out=out)
    return apply("/", *_numeric(input, other))


@lowers("pow")
def _pow(input: Any, exponent: Any) -> Value:
    if isinstance(exponent, Value) or not isinstance(exponent, int | float):
        return apply("exp2", exponent) if input == 2 else apply("pow", input, exponent)
    x = tensor(input)
    if exponent in (0.5, -0.5):  # as torch does: NaN, not inf, at -inf
        return apply("sqrt" if exponent > 0 else "rsqrt", x)
    if math.isfinite(exponent) and exponent == int(exponent) and abs(exponent) <= 64:
        return _integer_power(x, int(exponent))
    return apply("pow", x, exponent)


def _integer_power(x: Value, exponent: int) -> Value:
    """By squaring: at most 10 multiplications for 64, where pow() costs tens of instructions."""
    if exponent <= 0:
        return x.graph.const(1.0) if exponent == 0 else 1.0 / _integer_power(x, -exponent)
    result: Value | None = None
    square = x
    while exponent:
        if exponent & 1:
            result = square if result is None else result * square
        exponent >>= 1
        square = square * square if exponent else square
    return tensor(result)


@lowers("addcmul")
def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Number = 1) -> Value:
    return _add(input, apply("*", tensor1, tensor2), alpha=value)


@lowers("addcdiv")
def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Number = 1) -> Value:
    return _add(input, apply("/", tensor1, tensor2), alpha=value)


@lowers("lerp")
def _lerp(input: Any, end: Any, weight: Number) -> Value:
    """The two forms that torch picks from: each is exact at its own end."""
    gap = tensor(end) - tensor(input)
    near_start = tensor(input) + gap * weight
    near_end = tensor(end) - gap * (1.0 - weight)
    if isinstance(weight, Value):
        return compare("<", apply("abs", weight), 0.5).select(near_start, near_end)
    return near_start if abs(weight) < 0.5 else near_end


@lowers("neg", "negative")
def _neg(input: Any) -> Value:
    return -tensor(input)


@lowers("square")
def _square(input: Any) -> Value:
    x = tensor(input)
    return x * x


@lowers("reciprocal")
def _reciprocal(input: Any) -> Value:
    return 1.0 / tensor(input)


@lowers("sign", "sgn")
def _sign(input: Any) -> Value:
    """By comparisons, because torch.sign(NaN) is 0."""
    return compare(">", input, 0.0).select(1.0, compare("<", input, 0.0).select(-1.0, 0.0))


@lowers("round")
def _round(input: Any, *, decimals: int = 0) -> Value:
    if decimals:
        raise TraceError("decimals is not supported")
    return apply("round", tensor(input))


@lowers("trunc", "fix")
def _trunc(input: Any) -> Value:
    return compare("<", input, 0.0).select(apply("ceil", input), apply("floor", input))


@lowers("maximum")
def maximum(input: Any, other: Any) -> Value:
    return apply("max", input, other)


@lowers("minimum")
def minimum(input: Any, other: Any) -> Value:
    return apply("min", input, other)


@lowers("clamp", "clip")
def clamp(input: Any, min: Number | None = None, max: Number | None = None) -> Value:
    """The upper bound last, so that it wins where the bounds cross, as in torch."""
    result = tensor(input) if min is None else maximum(input, min)
    return result if max is None else minimum(result, max)


@lowers("clamp_min")
def _clamp_min(input: Any, min: Number) -> Value:
    return maximum(input, min)


@lowers("clamp_max")
def _clamp_max(input: Any, max: Number) -> Value:
    return minimum(input, max)

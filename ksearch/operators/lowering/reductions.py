"""Reductions over the last dim and what is composed of them: var, softmax, norms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.graph import Number, Value, apply, compare
from ksearch.operators.lowering.arithmetic import maximum, minimum
from ksearch.operators.lowering.table import Marker, Shape, absent, lowers, same_dtype, tensor


def _over_columns(dim: object) -> None:
    if dim not in (-1, (-1,), [-1]):
        over = "everything" if dim is None else f"dim={dim!r}"
        raise TraceError(f"it reduces over {over}, and only the last dim is supported: write dim=-1")


def _shaped(result: Value, keepdim: bool) -> Value:
    """A reduction's result with the reduced dim, or without it."""
    return replace(result, is_flat=not keepdim)


@lowers("sum")
def _sum(input: Any, dim: object = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    _over_columns(dim)
    same_dtype(dtype)
    return _shaped(total(tensor(input)), keepdim)


def total(x: Value) -> Value:
    return x.graph.reduce("sum", x)


@lowers("mean")
def _mean(input: Any, dim: object = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    return _sum(input, dim, keepdim, dtype=dtype) / tensor(input).graph.cols()


@lowers("amax")
def _amax(input: Any, dim: object = None, keepdim: bool = False) -> Value:
    _over_columns(dim)
    return _shaped(tensor(input).graph.reduce("max", tensor(input)), keepdim)


@lowers("amin")
def _amin(input: Any, dim: object = None, keepdim: bool = False) -> Value:
    _over_columns(dim)
    return _shaped(tensor(input).graph.reduce("min", tensor(input)), keepdim)


@lowers("max")
def _max(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> object:
    """Two functions under one name, as in torch: of two tensors, or over a dim with its indices."""
    if isinstance(dim, Value) or other is not None:
        return maximum(input, dim if other is None else other)
    return _amax(input, dim, keepdim), Marker.INDICES


@lowers("min")
def _min(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> object:
    if isinstance(dim, Value) or other is not None:
        return minimum(input, dim if other is None else other)
    return _amin(input, dim, keepdim), Marker.INDICES


def deviation(x: Value) -> tuple[Value, Value]:
    """Mean and sum of squares around it; in two passes, because one loses the digits of a large mean."""
    mean = total(x) / x.graph.cols()
    difference = x - mean
    return mean, total(difference * difference)


@lowers("var")
def _var(
    input: Any, dim: object = None, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Value:  # fmt: skip
    _over_columns(dim)
    x = tensor(input)
    lost = float(unbiased) if correction is None else float(correction)
    count = x.graph.cols() if lost == 0 else maximum(x.graph.cols() - lost, 0.0)
    return _shaped(deviation(x)[1] / count, keepdim)


@lowers("std")
def _std(
    input: Any, dim: object = None, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Value:  # fmt: skip
    return apply("sqrt", _var(input, dim, unbiased, keepdim, correction=correction))


def _exponentials(x: Value) -> tuple[Value, Value]:
    """x less its row's max, and the sum of the exponentials of that: safe for any finite row."""
    shifted = x - x.graph.reduce("max", x)
    return shifted, total(apply("exp", shifted))


@lowers("softmax")
def _softmax(input: Any, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Value:
    _over_columns(dim)
    same_dtype(dtype)
    shifted, summed = _exponentials(tensor(input))
    return apply("exp", shifted) / summed


@lowers("softmin")
def _softmin(input: Any, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Value:
    return _softmax(-tensor(input), dim, dtype=dtype)


@lowers("log_softmax")
def _log_softmax(input: Any, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Value:
    _over_columns(dim)
    same_dtype(dtype)
    shifted, summed = _exponentials(tensor(input))
    return shifted - apply("log", summed)


@lowers("logsumexp")
def _logsumexp(input: Any, dim: object, keepdim: bool = False) -> Value:
    top = _amax(input, dim, keepdim=True)
    logarithm = apply("log", _exponentials(tensor(input))[1])
    result = compare("==", apply("abs", top), math.inf).select(top, top + logarithm)  # else inf - inf
    return _shaped(result, keepdim)


def _last_dim(normalized_shape: Any) -> None:
    if isinstance(normalized_shape, Shape):
        last_only = normalized_shape.last_only
    else:
        last_only = isinstance(normalized_shape, int) or len(tuple(normalized_shape)) == 1
    if not last_only:
        raise TraceError("normalized_shape must be the last dim alone: write x.shape[-1:]")


def _scaled(x: Value, weight: Number | None, bias: Number | None = None) -> Value:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@lowers("rms_norm")
def _rms_norm(input: Any, normalized_shape: object, weight: Any = None, eps: float | None = None) -> Value:
    _last_dim(normalized_shape)
    if eps is None:
        raise TraceError("without eps it depends on the dtype: write eps=1e-6")
    x = tensor(input)
    return _scaled(x * apply("rsqrt", total(x * x) / x.graph.cols() + eps), weight)


@lowers("layer_norm")
def _layer_norm(
    input: Any, normalized_shape: object, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001
) -> Value:  # fmt: skip
    _last_dim(normalized_shape)
    x = tensor(input)
    mean, squares = deviation(x)
    return _scaled((x - mean) * apply("rsqrt", squares / x.graph.cols() + eps), weight, bias)


@lowers("norm", "linalg_norm", "linalg_vector_norm")
def _norm(
    input: Any, p: Any = None, dim: object = None, keepdim: bool = False, out: None = None,
    dtype: object = None, *, ord: Any = None,
) -> Value:  # fmt: skip
    _over_columns(dim)
    absent(out=out)
    same_dtype(dtype)
    x, order = tensor(input), ord if p is None else p
    if order in (2, None, "fro"):
        return _shaped(apply("sqrt", total(x * x)), keepdim)
    if order == 1:
        return _shaped(total(apply("abs", x)), keepdim)
    if order in (math.inf, -math.inf):
        return _shaped(x.graph.reduce("max" if order > 0 else "min", apply("abs", x)), keepdim)
    raise TraceError(f"only the norms of order 1, 2, inf and -inf are supported, not {order!r}")


@lowers("normalize")
def _normalize(input: Any, p: Any = 2.0, dim: object = 1, eps: float = 1e-12, out: None = None) -> Value:
    absent(out=out)
    return tensor(input) / maximum(_norm(input, p, dim, True), eps)

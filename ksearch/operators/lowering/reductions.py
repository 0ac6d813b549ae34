"""Reductions over the last dims, or all, and what is composed of them: var, softmax, norms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.lowering.arithmetic import maximum, minimum
from ksearch.operators.lowering.table import Shape, absent, lowers, same_dtype, tensor
from ksearch.operators.program import ACROSS_SAMPLES, EACH_ITS_OWN
from ksearch.operators.values import Number, Value, apply, compare


def over(dim: object) -> tuple[int, ...]:
    """The dims that torch's `dim` names, in order and counted from the last; none stands for all of them."""
    if dim is None or dim in ((), []):
        return ()
    given = tuple(dim) if isinstance(dim, tuple | list) else (dim,)
    dims = tuple(sorted(each for each in given if isinstance(each, int)))
    if len(dims) < len(given) or dims[-1] >= 0 or dims != tuple(range(dims[0], dims[-1] + 1)):
        raise TraceError(
            f"it reduces over dim={dim!r}, and only all dims, or neighbours counted from the last, are "
            "supported: write dim=-1 or dim=(-2, -1)"
        )
    return dims


def _one(dim: object) -> tuple[int, ...]:
    """The same for what PyTorch has over one dim only."""
    dims = over(dim)
    if len(dims) != 1:
        raise TraceError("it needs a dim: write dim=-1")
    return dims


def _shaped(result: Value, keepdim: bool) -> Value:
    """A reduction's result with the reduced dims, or without them."""
    return replace(result, is_flat=not keepdim)


def _reduced(kind: str, input: Any, dim: object, keepdim: bool) -> Value:
    x, dims = tensor(input), over(dim)
    if dims == () and x.graph.is_broadcast:
        raise TraceError("it reduces over everything, and a tensor is broadcast: begin with the last dim")
    return _shaped(x.graph.reduce(kind, x, dims), keepdim)


@lowers("sum")
def summed(input: Any, dim: object = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    same_dtype(dtype)
    x = tensor(input)
    if _is_folded(x, dim):
        absent(keepdim=keepdim)
        return x.graph.fold(total(x) if x.has_cols else replace(x, is_flat=False))
    return _reduced("sum", x, dim, keepdim)


def _is_folded(x: Value, dim: object) -> bool:
    """Whether rows that were reduced before are summed up."""
    if over(dim) != () or not x.has_rows:
        return False
    return not x.has_cols or x.graph.over not in (None, ()) or x.graph.is_broadcast


def total(x: Value, dims: tuple[int, ...] | None = None) -> Value:
    return x.graph.reduce("sum", x, dims)


@lowers("mean")
def mean(input: Any, dim: object = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    x = tensor(input)
    result, graph = summed(x, dim, keepdim, dtype=dtype), x.graph
    if not _is_folded(x, dim):
        return result / graph.cols()
    return result / (graph.rows() * graph.cols() if x.has_cols else graph.rows())


@lowers("prod")
def _prod(input: Any, dim: object = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    same_dtype(dtype)
    return _reduced("prod", input, dim, keepdim)


@lowers("amax")
def _amax(input: Any, dim: object = (), keepdim: bool = False) -> Value:
    return _reduced("max", input, dim, keepdim)


@lowers("amin")
def _amin(input: Any, dim: object = (), keepdim: bool = False) -> Value:
    return _reduced("min", input, dim, keepdim)


@lowers("argmax")
def _argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Value:
    return _reduced("argmax", input, dim, keepdim)


@lowers("argmin")
def _argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Value:
    return _reduced("argmin", input, dim, keepdim)


@lowers("max")
def _max(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> object:
    """Three functions under one name, as in torch: of two tensors, of all elements, over a dim with its
    indices."""
    if isinstance(dim, Value) or other is not None:
        return maximum(input, dim if other is None else other)
    if dim is None:
        return _amax(input)
    return _amax(input, dim, keepdim), _argmax(input, dim, keepdim)


@lowers("min")
def _min(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> object:
    if isinstance(dim, Value) or other is not None:
        return minimum(input, dim if other is None else other)
    if dim is None:
        return _amin(input)
    return _amin(input, dim, keepdim), _argmin(input, dim, keepdim)


def deviation(x: Value, dims: tuple[int, ...] | None = None) -> tuple[Value, Value]:
    """Mean and sum of squares around it; in two passes, because one loses the digits of a large mean."""
    center = total(x, dims) / x.graph.cols()
    difference = x - center
    return center, total(difference * difference, dims)


@lowers("var")
def _var(
    input: Any, dim: object = None, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Value:  # fmt: skip
    x = tensor(input)
    lost = float(unbiased) if correction is None else float(correction)
    count = x.graph.cols() if lost == 0 else maximum(x.graph.cols() - lost, 0.0)
    return _shaped(deviation(x, over(dim))[1] / count, keepdim)


@lowers("std")
def _std(
    input: Any, dim: object = None, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Value:  # fmt: skip
    return apply("sqrt", _var(input, dim, unbiased, keepdim, correction=correction))


def exponentials(x: Value, dims: tuple[int, ...] = (-1,)) -> tuple[Value, Value]:
    """x less its row's max, and the sum of the exponentials of that: safe for any finite row."""
    shifted = x - x.graph.reduce("max", x, dims)
    return shifted, total(apply("exp", shifted), dims)


@lowers("softmax")
def _softmax(input: Any, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Value:
    same_dtype(dtype)
    shifted, divisor = exponentials(tensor(input), _one(dim))
    return apply("exp", shifted) / divisor


@lowers("softmin")
def _softmin(input: Any, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Value:
    return _softmax(-tensor(input), dim, dtype=dtype)


@lowers("log_softmax")
def _log_softmax(input: Any, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Value:
    same_dtype(dtype)
    shifted, divisor = exponentials(tensor(input), _one(dim))
    return shifted - apply("log", divisor)


@lowers("logsumexp")
def _logsumexp(input: Any, dim: object, keepdim: bool = False) -> Value:
    top = _amax(input, dim, keepdim=True)
    logarithm = apply("log", exponentials(tensor(input), over(dim))[1])
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
    return _scaled(x * apply("rsqrt", total(x * x, (-1,)) / x.graph.cols() + eps), weight)


@lowers("layer_norm")
def _layer_norm(
    input: Any, normalized_shape: object, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001
) -> Value:  # fmt: skip
    _last_dim(normalized_shape)
    x = tensor(input)
    mean, squares = deviation(x, (-1,))
    return _scaled((x - mean) * apply("rsqrt", squares / x.graph.cols() + eps), weight, bias)


@lowers("group_norm")
def _group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001
) -> Value:  # fmt: skip
    return _grouped(tensor(input), num_groups, weight, bias, eps)


@lowers("instance_norm")
def _instance_norm(
    input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,  # noqa: ARG001
) -> Value:  # fmt: skip
    absent(running_mean=running_mean, running_var=running_var)
    if not use_input_stats:
        raise TraceError("use_input_stats=False is not supported")
    return _grouped(tensor(input), EACH_ITS_OWN, weight, bias, eps)


def _grouped(x: Value, groups: int, weight: Any, bias: Any, eps: float) -> Value:
    x.graph.group(groups)
    mean, squares = deviation(x)
    scale, shift = (each if each is None else x.graph.channel(tensor(each)) for each in (weight, bias))
    return _scaled((x - mean) * apply("rsqrt", squares / x.graph.cols() + eps), scale, shift)


@lowers("batch_norm")
def _batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,  # noqa: ARG001
) -> Value:  # fmt: skip
    x = tensor(input)
    if training and running_mean is None and running_var is None:
        return _grouped(x, ACROSS_SAMPLES, weight, bias, eps)
    if training or running_mean is None or running_var is None:
        raise TraceError("running statistics that it changes are not supported: give none, or training=False")
    mean, variance = (x.graph.channel(tensor(each)) for each in (running_mean, running_var))
    scale, shift = (each if each is None else x.graph.channel(tensor(each)) for each in (weight, bias))
    return _scaled(x - mean, _scaled(apply("rsqrt", variance + eps), scale), shift)


@lowers("norm", "linalg_norm", "linalg_vector_norm")
def _norm(
    input: Any, p: Any = None, dim: object = None, keepdim: bool = False, out: None = None,
    dtype: object = None, *, ord: Any = None,
) -> Value:  # fmt: skip
    absent(out=out)
    same_dtype(dtype)
    x, order, dims = tensor(input), ord if p is None else p, over(dim)
    if order in (2, None, "fro"):
        return _shaped(apply("sqrt", total(x * x, dims)), keepdim)
    if order == 1:
        return _shaped(total(apply("abs", x), dims), keepdim)
    if order in (math.inf, -math.inf):
        return _shaped(x.graph.reduce("max" if order > 0 else "min", apply("abs", x), dims), keepdim)
    raise TraceError(f"only the norms of order 1, 2, inf and -inf are supported, not {order!r}")


@lowers("normalize")
def _normalize(input: Any, p: Any = 2.0, dim: object = 1, eps: float = 1e-12, out: None = None) -> Value:
    absent(out=out)
    return tensor(input) / maximum(_norm(input, p, dim, True), eps)

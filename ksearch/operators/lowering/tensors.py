"""What a traced function may ask of a tensor that is no arithmetic: casts, copies, its shape and dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.lowering.linear import transposed
from ksearch.operators.lowering.table import Marker, Shape, lowers, same_dtype, tensor
from ksearch.operators.values import Mask, Shortened, Value


@lowers("float", "contiguous", "clone", "detach", "positive", "pos", "type_as")
def _as_it_is(input: Any, *_: Any, **__: Any) -> Value:
    """Kernels compute in float32 whatever the dtype, so a cast up changes nothing."""
    return input.select(1.0, 0.0) if isinstance(input, Mask) else tensor(input)


@lowers("to", "type")
def _to(input: Any, dtype: Any = None) -> Value:
    same_dtype(None if isinstance(dtype, Value) else dtype)
    return _as_it_is(input)


@lowers("zeros_like")
def _zeros_like(input: Any, *, dtype: object = None) -> Value:
    return _full_like(input, 0.0, dtype=dtype)


@lowers("ones_like")
def _ones_like(input: Any, *, dtype: object = None) -> Value:
    return _full_like(input, 1.0, dtype=dtype)


@lowers("full_like")
def _full_like(input: Any, fill_value: float, *, dtype: object = None) -> Value:
    same_dtype(dtype)
    return tensor(input).graph.const(fill_value)


@lowers("unsqueeze")
def _unsqueeze(input: Any, dim: int) -> Value:
    if not tensor(input).is_flat or (dim,) != tensor(input).graph.over:
        raise TraceError("only a reduced dim can be put back: write unsqueeze(-1) after the reduction")
    return replace(tensor(input), is_flat=False)


@lowers("squeeze")
def _squeeze(input: Any, dim: object = None) -> Value:
    value = tensor(input)
    over = value.graph.over or (-1,)
    if len(over) > 1 or dim not in (over[0], over) or value.has_cols or not value.has_rows or value.is_flat:
        raise TraceError("only a reduced dim can be dropped: write squeeze(-1) after the reduction")
    return replace(value, is_flat=True)


@lowers("size")
def _size(input: Any, dim: int | None = None) -> object:
    shape = Shape(tensor(input), last_only=not tensor(input).has_rows)
    return shape if dim is None else _getitem(shape, dim)


@lowers("getattr")
def _getattr(input: Any, name: str) -> object:
    if isinstance(input, Value) and name == "dtype":
        return Marker.DTYPE
    if isinstance(input, Value) and name == "shape":
        return _size(input)
    if isinstance(input, tuple) and name == "values":
        return input[0]
    if isinstance(input, Value) and name in ("T", "mT"):
        return transposed(input)
    raise TraceError(f"attribute {name!r} is not supported")


@lowers("getitem")
def _getitem(input: Any, index: Any) -> object:
    if isinstance(input, tuple) and index in (0, 1):
        return input[index]
    if isinstance(input, Shape) and input.tensor.graph.is_operand(input.tensor):
        raise TraceError("the shape of what a linear takes is not known here: make the number an option")
    if isinstance(input, Shape) and index == -1 and input.tensor.has_cols:
        return input.tensor.graph.last_dim()
    if isinstance(input, Shape) and index == slice(-1, None):
        return Shape(input.tensor, last_only=True)
    if isinstance(input, Value) and index == (Ellipsis, slice(None, -1)):
        return Shortened(input)
    if isinstance(input, Shape):
        raise TraceError("of a shape only the last dim is supported: write x.shape[-1]")
    raise TraceError("indexing a tensor is not supported")

"""Sums and products along the last dim, and the flips and shifts that other forms of them are made with."""

from __future__ import annotations

from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.graph import Shortened, Value
from ksearch.operators.lowering.table import absent, lowers, same_dtype, tensor


def _along_columns(dim: object) -> None:
    if dim not in (-1, (-1,), [-1]):
        raise TraceError(f"it goes along dim={dim!r}, and only the last dim is supported: write dim=-1")


@lowers("cumsum")
def _cumsum(input: Any, dim: int, *, dtype: object = None, out: None = None) -> Value:
    absent(out=out)
    _along_columns(dim)
    same_dtype(dtype)
    return tensor(input).graph.scan("sum", tensor(input))


@lowers("cumprod")
def _cumprod(input: Any, dim: int, *, dtype: object = None, out: None = None) -> Value:
    absent(out=out)
    _along_columns(dim)
    same_dtype(dtype)
    return tensor(input).graph.scan("prod", tensor(input))


@lowers("flip")
def _flip(input: Any, *dims: Any) -> Value:
    (dim,) = dims if len(dims) == 1 else (dims,)
    _along_columns(dim)
    return tensor(input).graph.reverse(tensor(input))


@lowers("pad")
def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Value:
    if not isinstance(input, Shortened) or tuple(pad) != (1, 0) or mode != "constant":
        raise TraceError("only a sum along the columns can be shifted: write F.pad(y[..., :-1], (1, 0))")
    return input.tensor.graph.exclusive(input.tensor, 0.0 if value is None else value)

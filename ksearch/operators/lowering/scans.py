"""Sums and products along a dim, and the flips and shifts that other forms of them are made with."""

from __future__ import annotations

from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.lowering.table import absent, lowers, same_dtype, tensor
from ksearch.operators.values import Shortened, Value


def _along(dim: object) -> tuple[int]:
    """The one dim that `dim` names, counted from the last."""
    one = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
    if type(one) is not int or one >= 0:
        raise TraceError(f"it goes along dim={dim!r}, and dims must be counted from the last: write dim=-1")
    return (one,)


@lowers("cumsum")
def _cumsum(input: Any, dim: int, *, dtype: object = None, out: None = None) -> Value:
    absent(out=out)
    same_dtype(dtype)
    return tensor(input).graph.scan("sum", tensor(input), _along(dim))


@lowers("cumprod")
def _cumprod(input: Any, dim: int, *, dtype: object = None, out: None = None) -> Value:
    absent(out=out)
    same_dtype(dtype)
    return tensor(input).graph.scan("prod", tensor(input), _along(dim))


@lowers("flip")
def _flip(input: Any, *dims: Any) -> Value:
    (dim,) = dims if len(dims) == 1 else (dims,)
    return tensor(input).graph.reverse(tensor(input), _along(dim))


@lowers("pad")
def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Value:
    """Of a sum shifted by one: its last place goes, and what nothing adds up to comes first."""
    last_goes = isinstance(input, Shortened)
    shift = [1, 0] if last_goes else [1, -1]
    given = list(pad)
    before = len(given) - 2
    if mode != "constant" or given != [0] * before + shift or (last_goes and before):
        raise TraceError(
            "only a sum along the columns can be shifted: write F.pad(y, (1, -1)), along dim -2 (0, 0, 1, -1)"
        )
    scan = input.tensor if isinstance(input, Shortened) else tensor(input)
    return scan.graph.exclusive(scan, 0.0 if value is None else value, (-1 - before // 2,))

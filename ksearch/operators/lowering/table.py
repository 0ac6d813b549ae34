"""The table of what each PyTorch function means in terms of a graph.

Functions are found by PyTorch's own name, so `torch.exp(x)` and `x.exp()` take one path, and their
parameters carry PyTorch's names. They raise TraceError; the tracer adds the place in the user's file.
"""

from __future__ import annotations

import difflib
import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ksearch.errors import TraceError
from ksearch.operators.values import Mask, Value, describe

F = TypeVar("F", bound=Callable[..., Any])

_TABLE: dict[str, Callable[..., Any]] = {}


class Marker(enum.Enum):
    """What a traced function may name of a tensor besides its values and shape."""

    DTYPE = "a dtype"


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a traced tensor; only its last entry, the row length, can be computed with."""

    tensor: Value
    last_only: bool


def lowers(*names: str) -> Callable[[F], F]:
    """Enter a function into the table under PyTorch's names for it."""

    def enter(function: F) -> F:
        _TABLE.update(dict.fromkeys(names, function))
        return function

    return enter


def supported() -> list[str]:
    """Every function name that can be lowered, sorted."""
    return sorted(_TABLE)


def lower(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of calling PyTorch's `name`. Raises TraceError."""
    function = _TABLE.get(name)
    if function is None:
        near = difflib.get_close_matches(name, _TABLE, n=1)
        hint = f"; nearest is {near[0]}" if near else ""
        raise TraceError(
            f"{name} is not supported (pointwise functions, reductions over dims, one linear are{hint})"
        )
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(f"{name} with these arguments is not supported: {error}") from None
    try:
        return function(*bound.args, **bound.kwargs)
    except TraceError as error:
        raise TraceError(f"{name}: {error}") from None


def tensor(thing: object) -> Value:
    if not isinstance(thing, Value):
        raise TraceError(f"a tensor is needed here, not {describe(thing)}")
    return thing


def truth(thing: object) -> Mask:
    if not isinstance(thing, Mask):
        raise TraceError(f"a comparison is needed here, not {describe(thing)}")
    return thing


def same_dtype(dtype: object) -> None:
    """Kernels compute in float32 and store the dtype of the inputs, so only those two may be named."""
    if dtype not in (None, torch.float32, Marker.DTYPE):
        raise TraceError(f"a cast to {dtype} is not supported, only to torch.float32 or x.dtype")


def absent(**unsupported: object) -> None:
    """Refuse arguments that change the meaning and are not supported."""
    for name, value in unsupported.items():
        if value is not None and value is not False:
            raise TraceError(f"{name}={value!r} is not supported")

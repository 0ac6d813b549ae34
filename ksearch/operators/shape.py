"""Shapes as people write them: `4096x393216`, `4096,393216`, `(4096, 393216)`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from typing import TypeAlias

from ksearch.errors import BadShape

Shape: TypeAlias = tuple[int, ...]

_MOST = 2**58
"""PyTorch counts bytes in 64 bits with a sign."""

_TEXT = re.compile(r"\d+(?:\s*[xX×,]\s*\d+)*\s*,?")


def parse_shape(text: str) -> tuple[int, ...]:
    """The dimensions that `text` names. Raises BadShape."""
    bare = text.strip().removeprefix("(").removesuffix(")").removeprefix("[").removesuffix("]").strip()
    if "-" in bare and _TEXT.fullmatch(bare.replace("-", "")):
        raise BadShape(f"shape {text!r} has a negative dimension: every dimension must be at least 1")
    if not _TEXT.fullmatch(bare):
        raise BadShape(f"shape {text!r} does not parse: write the dimensions like 4096x8192")
    # Python refuses to read thousands of digits; what is cut off makes no difference to what is too large.
    return check_shape(int((dim.lstrip("0") or "0")[:30]) for dim in re.findall(r"\d+", bare))


def split_dims(op: str, dims: Shape) -> tuple[Shape, int]:
    """The shape of what a linear gives, and the features that it sums over. Raises BadShape.

    `dims` are BATCH, which may be several, IN and OUT.
    """
    if len(dims) < 3:
        text = "x".join(map(str, dims))
        raise BadShape(
            f"shape {text} is too short: {op} starts with a linear layer, and takes BATCHxINxOUT, such as "
            "1024x8192x4096"
        )
    return (*dims[:-2], dims[-1]), dims[-2]


def check_shape(dims: Iterable[int]) -> tuple[int, ...]:
    """The dimensions as plain ints. Raises BadShape unless there is one and all are at least 1."""
    given = tuple(dims)
    try:
        shape = tuple(operator.index(dim) for dim in given)
    except TypeError:
        raise BadShape(f"shape {given!r} must be made of whole numbers") from None
    if not shape:
        raise BadShape("the shape has no dimension: at least one is needed, such as 4096x8192")
    for dim in shape:
        if dim < 1:
            kind = "an empty" if dim == 0 else "a negative"
            text = "x".join(map(str, shape))
            raise BadShape(f"shape {text} has {kind} dimension ({dim}): every dimension must be at least 1")
    if math.prod(shape) >= _MOST:
        raise BadShape("a shape of 2**58 elements or more fits no device")
    return shape

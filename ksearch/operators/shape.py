"""Shapes as people write them: `4096x393216`, `4096,393216`, `(4096, 393216)`."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable

from ksearch.errors import BadShape

_TEXT = re.compile(r"\d+(?:\s*[xX×,]\s*\d+)*\s*,?")


def parse_shape(text: str) -> tuple[int, ...]:
    """The dimensions that `text` names. Raises BadShape."""
    bare = text.strip().removeprefix("(").removesuffix(")").removeprefix("[").removesuffix("]").strip()
    if "-" in bare and _TEXT.fullmatch(bare.replace("-", "")):
        raise BadShape(f"shape {text!r} has a negative dimension: every dimension must be at least 1")
    if not _TEXT.fullmatch(bare):
        raise BadShape(f"shape {text!r} does not parse: write the dimensions like 4096x8192")
    return check_shape(int(dim) for dim in re.findall(r"\d+", bare))


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
    return shape

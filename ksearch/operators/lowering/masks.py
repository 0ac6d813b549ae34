"""Comparisons and what is done with them: where, masked_fill, and, or, not, isnan."""

from __future__ import annotations

import math
from typing import Any

from ksearch.operators.lowering.table import lowers, truth
from ksearch.operators.values import Mask, Number, Value, apply, compare

_COMPARISONS = {
    "<": ("lt", "less"),
    "<=": ("le", "less_equal"),
    ">": ("gt", "greater"),
    ">=": ("ge", "greater_equal"),
    "==": ("eq",),
    "!=": ("ne", "not_equal"),
}


def _enter_comparison(sign: str, names: tuple[str, ...]) -> None:
    @lowers(*names)
    def function(input: Any, other: Any) -> Mask:
        return compare(sign, input, other)


for _sign, _names in _COMPARISONS.items():
    _enter_comparison(_sign, _names)


@lowers("where")
def _where(condition: Any, input: Number, other: Number) -> Value:
    if isinstance(condition, Mask):
        return condition.select(input, other)
    return truth(input).select(condition, other)  # x.where(condition, other)


@lowers("masked_fill")
def _masked_fill(input: Any, mask: Any, value: Number) -> Value:
    return truth(mask).select(value, input)


@lowers("and_", "logical_and", "bitwise_and")
def _and(input: Any, other: Any) -> Mask:
    return truth(input) & truth(other)


@lowers("or_", "logical_or", "bitwise_or")
def _or(input: Any, other: Any) -> Mask:
    return truth(input) | truth(other)


@lowers("invert", "logical_not", "bitwise_not")
def _not(input: Any) -> Mask:
    return ~truth(input)


@lowers("isnan")
def _isnan(input: Any) -> Mask:
    return compare("!=", input, input)


@lowers("isinf")
def _isinf(input: Any) -> Mask:
    return compare("==", apply("abs", input), math.inf)


@lowers("isfinite")
def _isfinite(input: Any) -> Mask:
    return compare("<", apply("abs", input), math.inf)

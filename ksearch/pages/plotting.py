"""What every figure is made of: variants of plain JSON, roles of colours, axes with readable numbers.

A colour is the name of a role (`@accent`), for which `html/page.js` puts what the style sheet has for it, so
that a figure is right in the dark and in the light.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Trace: TypeAlias = dict[str, Any]
Layout: TypeAlias = dict[str, Any]

TIME = "time (µs)"
"""What every axis of times is called."""

COLOURS = {
    "winner": "@accent", "runner_up": "@second", "pytorch": "@strong", "peer": "@peer", "ceiling": "@muted",
}  # fmt: skip
"""Of what ran side by side, the same in every figure."""

_DIGITS = 5
"""That numbers keep: a third of the bytes, and more than a screen can show."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to look at a figure; a reader switches between them."""

    label: str
    data: list[Trace]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Figure:
    """`empty` says why there are no variants."""

    variants: tuple[Variant, ...] = ()
    empty: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """In plain lists, with numbers short and finite."""
        found: dict[str, Any] = _rounded(asdict(self))
        return found


def literal(text: str) -> str:
    """As it is: Plotly takes a few HTML tags in any text that it draws."""
    return html.escape(text, quote=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def log_axis(values: Iterable[float], title: str, padding: float = 0.06) -> Layout:
    """A logarithmic axis over positive `values` with a handful of round numbers on it.

    Plotly's own has one number a decade, or labels that leave the decade to be guessed.
    """
    known = [value for value in values if value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    if high < low * 1.05:
        low, high = low / 1.2, high * 1.2
    span = math.log10(high / low) * padding
    first, last = math.log10(low) - span, math.log10(high) + span
    marks = ticks(10**first, 10**last)
    return {
        "type": "log",
        "title": {"text": title},
        "range": [first, last],
        "tickmode": "array",
        "tickvals": marks,
        "ticktext": [f"{tick:,.6g}" for tick in marks],
    }


def ticks(low: float, high: float) -> list[float]:
    """Three to nine round numbers in between: equal steps over less than an octave, else parts of decades."""
    if high < 2 * low:
        size = 10.0 ** math.floor(math.log10((high - low) / 4))
        step = next(k * size for k in (1, 2, 2.5, 5, 10) if (high - low) / (k * size) <= 6)
        return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for parts in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [part * 10.0**decade for decade in decades for part in parts]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 4:
            break
    return found[:: math.ceil(len(found) / 9)]

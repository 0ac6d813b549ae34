"""Fragments of HTML out of `html/`: every value is escaped, and numbers are written as everywhere else."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ksearch.report import text

FOLDER = Path(__file__).parent / "html"


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,  # whatever the name ends in
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        time_us=text.time_us, times=text.times, percent=text.percent, error=_error, island=island
    )
    return made


def fragment(name: str, **values: Any) -> Markup:
    """The fragment, which other templates may include as it is."""
    return Markup(_environment().get_template(name).render(values))  # noqa: S704  (autoescape made it safe)


def style() -> str:
    """The one style sheet."""
    return (FOLDER / "style.css").read_text()


def script() -> str:
    """What filters, sorts and draws."""
    return (FOLDER / "page.js").read_text()


def island(value: Any) -> Markup:
    """JSON to stand inside `<script type="application/json">`, where only a `<` could end the element.

    Raises ValueError for a number that is not finite, for which JSON has no word.
    """
    written = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(written.replace("<", "\\u003c"))  # noqa: S704  (nothing in it is HTML any more)


def highlighted(source: str, backend: str) -> Markup:
    """C++ or CUDA as spans of the classes k (keyword), t (type), s (text), m (number) and c (comment).

    Pygments' own formatter marks every name and space: 33 KB of source become 290 KB, and like this 64.
    """
    # Pygments takes 50 ms to import, which only this needs.
    from pygments.lexers import CppLexer, CudaLexer
    from pygments.token import Token

    kinds = [
        (Token.Keyword.Type, "t"), (Token.Keyword, "k"), (Token.String, "s"), (Token.Number, "m"),
        (Token.Comment, "c"),
    ]  # fmt: skip
    lexer = (CudaLexer if backend == "cuda" else CppLexer)(stripnl=False, ensurenl=False)
    classed = (
        (next((name for token, name in kinds if kind in token), ""), text)
        for kind, text in lexer.get_tokens(source)
    )
    parts = []
    for name, run in itertools.groupby(classed, key=lambda each: each[0]):
        text = escape("".join(text for _, text in run))
        parts.append(Markup('<span class="{}">{}</span>').format(name, text) if name else text)
    return Markup().join(parts)


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if value else "0"

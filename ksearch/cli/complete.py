"""What a shell may offer for an op, a shape or a device: names that are registered or in the database.

A shell asks at each press of the key, so this reads the file by plain sqlite3: SQLAlchemy alone would take
0.2 s to import. Whatever is wrong with the file, nothing is offered and nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import click
from click.shell_completion import CompletionItem

from ksearch import env
from ksearch.cli.choosing import kept_as

_Items: TypeAlias = "list[CompletionItem[str]]"


def ops_known(ctx: click.Context, _: click.Parameter, incomplete: str) -> _Items:
    """Ops that are built in or have results; where none fits, a file with one's own."""
    from ksearch import operators

    names = {*operators.names(), *(name for (name,) in _rows(ctx, "SELECT DISTINCT op FROM workloads"))}
    return _starting(names, incomplete) or [CompletionItem(incomplete, type="file")]


def ops_found(ctx: click.Context, _: click.Parameter, incomplete: str) -> _Items:
    """Ops that have results."""
    return _starting((name for (name,) in _rows(ctx, "SELECT DISTINCT op FROM workloads")), incomplete)


def shapes(ctx: click.Context, _: click.Parameter, incomplete: str) -> _Items:
    """Of the op that was named before, or of all; of a linear BATCHxINxOUT."""
    query = 'SELECT DISTINCT shape, "inner" FROM workloads'
    asked: tuple[str, ...] = ()
    # click stops reading at `--shape`, which has no value yet, and leaves OP among the rest
    op = ctx.params.get("op") or next(iter(ctx.args), None)
    if op is not None:
        query, asked = f"{query} WHERE op = ?", (kept_as(op),)
    found = [_stated(shape, inner) for shape, inner in _rows(ctx, query, asked)]
    found.sort(key=lambda shape: [int(dim) for dim in shape.split("x") if dim])
    return [CompletionItem(shape) for shape in found if shape.startswith(incomplete)]


def _stated(shape: str, inner: int) -> str:
    if not inner:
        return shape
    outer, _, last = shape.rpartition("x")
    return f"{outer}x{inner}x{last}"


def devices(ctx: click.Context, _: click.Parameter, incomplete: str) -> _Items:
    """The backends, and one word of each device's name that no other has: a shell splits at spaces."""
    found = _rows(ctx, "SELECT DISTINCT backend, device FROM targets ORDER BY device")
    names = [name for _, name in found]
    items = [CompletionItem(backend) for backend in ("cpu", "cuda") if backend.startswith(incomplete)]
    for name in names:
        others = [other.lower() for other in names if other != name]
        words = re.findall(r"[\w.-]{2,}", name)
        words.sort(key=lambda word: not re.search(r"\d", word))  # H200 says more than NVIDIA
        own = [word for word in words if not any(word.lower() in other for other in others)]
        fitting = [word for word in own or words if word.lower().startswith(incomplete.lower())]
        items += [CompletionItem(word, help=name) for word in fitting[:1]]
    return items


def _starting(names: Iterable[str], incomplete: str) -> _Items:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _rows(ctx: click.Context, query: str, asked: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of the database that `--db` names, or the default one; none where it cannot be read."""
    import sqlite3  # 2 ms, which `--help` need not pay

    from ksearch import database

    asked_for = ctx.params.get("db")
    path = asked_for if isinstance(asked_for, Path) else env.database_path()
    try:
        with closing(database.open_readonly(path, 0.2)) as file:
            return file.execute(query, asked).fetchall()
    except sqlite3.Error:
        return []

"""Ops as plain functions: `ksearch.ops.softmax(x)` runs the best that is known for this very tensor.

Every op that is registered is here by its name, the user's own as well. What was asked for is kept as an
attribute, which takes a fifth of the time of asking again, until an op is entered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ksearch import operators, torch_ops
from ksearch.errors import UnknownOp
from ksearch.operators import registry
from ksearch.runtime import dispatcher

if TYPE_CHECKING:
    from ksearch.runtime import Dispatcher

torch_ops.install()
_kept: set[str] = set()


def __getattr__(name: str) -> Dispatcher:
    if name.startswith("__"):  # Python's own questions, such as __path__
        raise AttributeError(f"module 'ksearch.ops' has no attribute {name!r}")
    try:
        found = dispatcher(name)
    except UnknownOp as error:
        raise AttributeError(str(error)) from None
    _kept.add(name)
    globals()[name] = found
    return found


def _forget(_: str) -> None:
    """An op was entered: its name, or an alias, may mean another one now."""
    while _kept:
        globals().pop(_kept.pop(), None)


registry.observers.append(_forget)


def __dir__() -> list[str]:
    return sorted(operators.names())
